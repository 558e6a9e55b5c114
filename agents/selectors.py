"""Named reads of agents."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Q, QuerySet
from django.db.models.functions import Coalesce

from agents.actions import AgentResource, MadeFrom, VersionResource
from agents.config import Access, AgentConfig
from agents.document import FORMAT, FORMAT_VERSION, AgentDocument, secret_slots
from agents.errors import AgentNotFound, VersionNotFound
from agents.models import Agent, AgentVersion
from agents.validation import validation_of
from core.cache import TimedCache
from core.changes import Change, changes_between
from core.errors import Suspended
from core.ids import parse_uuid
from core.models import AuditEntry
from core.tenancy import across_tenants

# What people edit of an agent beside its configuration.
EDITED = (
    "name",
    "type",
    "slug",
    "description",
    "status",
    "published_version",
    "suspended",
    "suspended_reason",
    "deleted",
)


@dataclass(frozen=True, slots=True)
class AgentAccess:
    """Who may chat with an agent. One that is open to all has nothing to ask anybody for."""

    kind: Access = "public"
    origins: frozenset[str] = frozenset()
    require_resume: bool = False

    @property
    def is_open(self) -> bool:
        return self.kind == "public" and not self.origins and not self.require_resume


OPEN = AgentAccess()


@dataclass(frozen=True, slots=True)
class LiveAgent:
    """An agent that answers, with its published version."""

    agent_id: uuid.UUID
    tenant_id: str
    version_id: int
    access: AgentAccess = OPEN
    suspended: bool = False  # it, or its tenant


@dataclass(frozen=True, slots=True)
class AgentDoor:
    """What sockets of an agent's sessions need of it: also of one that is deleted, or a draft again."""

    access: AgentAccess
    suspended: bool  # it, or its tenant


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """A version as a run needs it: immutable, so it may be kept for ever."""

    agent_id: uuid.UUID
    tenant_id: str
    number: int
    config: AgentConfig


# A change is in force within a second in every process, without a message.
_live: TimedCache[uuid.UUID, LiveAgent] = TimedCache(seconds=1.0)
_names: TimedCache[uuid.UUID, tuple[str, bool]] = TimedCache(seconds=1.0)

_ACCESS = ("access", "allowed_origins", "require_resume_token")
_SUSPENDED: Any = Q(suspended_at__isnull=False) | Q(tenant__suspended_at__isnull=False)


def agent_live(agent_id: uuid.UUID, tenant_id: str | None = None) -> LiveAgent:
    """The published agent, of that tenant or of whatever tenant: it decides who pays.

    Raises AgentNotFound, and Suspended.
    """
    found = _live.get(agent_id, _load_live)
    if found is None or tenant_id not in (None, found.tenant_id):
        raise AgentNotFound()
    if found.suspended:
        raise Suspended()
    return found


def agent_changed(agent_id: uuid.UUID) -> None:
    """For the process that has changed it, and need not wait for the second."""
    _live.forget(agent_id)
    _names.forget(agent_id)


# What is kept for everybody is read as nobody: whose scope asks first must not matter.


@across_tenants()
def _load_live(agent_id: uuid.UUID) -> LiveAgent | None:
    row = (
        Agent.unscoped.filter(pk=agent_id, deleted_at=None, published__isnull=False)
        .values_list(
            "tenant_id", "published_id", _SUSPENDED, *(f"published__config__{name}" for name in _ACCESS)
        )
        .first()
    )
    if row is None:
        return None
    tenant_id, version_id, suspended, *access = row
    said = dict(zip(_ACCESS, access, strict=True))
    return LiveAgent(agent_id, tenant_id, version_id, access_of(said), suspended)


def access_of(config: Mapping[str, Any]) -> AgentAccess:
    """What a stored configuration says of it; versions older than these fields say nothing."""
    kind, origins, require_resume = (config.get(name) for name in _ACCESS)
    found = AgentAccess(kind or "public", frozenset(origins or ()), bool(require_resume))
    return OPEN if found.is_open else found


def agent_doors(agent_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, AgentDoor]:
    """Agents of the current tenant as the sockets of their sessions see them, as they are at this moment.

    What counts is the published version, or the newest while there is none.
    """
    config = Coalesce("published__config", "version__config")
    rows = Agent.objects.filter(pk__in=agent_ids).values_list("pk", config, _SUSPENDED)
    return {pk: AgentDoor(access_of(values), suspended) for pk, values, suspended in rows}


@functools.lru_cache(maxsize=4096)
@across_tenants()
def agent_version(version_id: int) -> PinnedVersion:
    """The version, whose agent may be deleted by now."""
    version = AgentVersion.unscoped.get(pk=version_id)
    return PinnedVersion(
        version.agent_id,
        version.tenant_id,
        version.number,
        AgentConfig(**version.config),
    )


def agent_name(agent_id: uuid.UUID) -> str:
    """What the agent is called now, also when it is deleted."""
    found = _names.get(agent_id, _load_name)
    return found[0] if found is not None else ""


def agent_is_suspended(agent_id: uuid.UUID) -> bool:
    """Whether the agent or its tenant is switched off; read together with its name."""
    found = _names.get(agent_id, _load_name)
    return found is not None and found[1]


@across_tenants()
def _load_name(agent_id: uuid.UUID) -> tuple[str, bool] | None:
    rows = Agent.unscoped.filter(pk=agent_id).values_list("name", _SUSPENDED)
    found: tuple[str, bool] | None = rows.first()
    return found


def agent_get(agent_id: uuid.UUID) -> Agent:
    """An agent of the current tenant, with its versions. Raises AgentNotFound."""
    agent: Agent | None = _agents(deleted=False).filter(pk=agent_id).first()
    if agent is None:
        raise AgentNotFound()
    return agent


def agent_named(text: str) -> Agent:
    """The agent of the current tenant that has this id or this slug. Raises AgentNotFound."""
    agent_id = parse_uuid(text)
    if agent_id is not None:
        return agent_get(agent_id)
    agent: Agent | None = _agents(deleted=False).filter(slug=text).first()
    if agent is None:
        raise AgentNotFound()
    return agent


def agent_list(after: uuid.UUID | None, limit: int, *, deleted: bool = False) -> list[Agent]:
    """Agents of the current tenant, oldest first, `limit` of them from `after` on; or its deleted ones."""
    rows = _agents(deleted=deleted).order_by("pk")
    return list(rows.filter(pk__gt=after)[:limit] if after else rows[:limit])


def _agents(*, deleted: bool) -> QuerySet[Agent]:
    rows: QuerySet[Agent] = Agent.objects.filter(deleted_at__isnull=not deleted)
    return rows.select_related("version", "published", "template", "tenant__tier")


def agent_resource(agent: Agent) -> AgentResource:
    """The agent as the API shows it."""
    assert agent.version is not None
    return AgentResource(
        agent_id=agent.pk,
        slug=agent.slug,
        name=agent.name,
        type=agent.type,
        description=agent.description,
        status=agent.status,
        version=agent.version.number,
        published_version=agent.published.number if agent.published is not None else None,
        etag=agent.tag,
        config=AgentConfig(**agent.version.config),
        suspended_at=agent.suspended_at,
        template=_made_from(agent),
        validation=validation_of(agent),
        created_at=agent.created_at,
        updated_at=agent.updated_at,
    )


def _made_from(agent: Agent) -> MadeFrom | None:
    if agent.template is None or agent.template_version is None:
        return None
    newer = agent.template.version > agent.template_version
    return MadeFrom(id=agent.template.pk, version=agent.template_version, newer=newer)


def agent_state(agent: Agent) -> dict[str, Any]:
    """All of an agent that can change, as audit entries show it."""
    assert agent.version is not None
    return {
        "name": agent.name,
        "type": agent.type,
        "slug": agent.slug,
        "description": agent.description,
        "status": agent.status,
        "version": agent.version.number,
        "published_version": agent.published.number if agent.published is not None else None,
        "suspended": agent.suspended_at is not None,
        "suspended_reason": agent.suspended_reason,
        "deleted": agent.deleted_at is not None,
        "etag": agent.tag,
        "config": config_shown(agent.version),
    }


def agent_document(agent: Agent) -> AgentDocument:
    """The agent as a document to move."""
    assert agent.version is not None
    config = AgentConfig(**agent.version.config)
    return AgentDocument(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=agent.name,
        type=agent.type,
        slug=agent.slug,
        description=agent.description,
        draft=agent.status == Agent.Status.DRAFT,
        note=agent.version.note,
        config=config,
        secrets=secret_slots(config),
    )


def agent_changes(agent: Agent, tag: str) -> list[Change] | None:
    """What has become different since the agent's state was `tag`; None when it never was.

    The configuration is compared by its versions, all else by the audit entries since.
    """
    number, _dot, _edits = tag.partition(".")
    old = _version(agent, int(number)) if number.isdecimal() and len(number) < 10 else None
    if old is None:
        return None
    assert agent.version is not None
    changes = version_changes(old, agent.version)
    entries = AuditEntry.objects.filter(object_type="agent", object_id=str(agent.pk)).order_by("pk")
    since = entries.filter(after__etag=tag).last()
    if since is None:
        return changes
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for entry in entries.filter(pk__gt=since.pk):
        before = {**entry.before, **before}
        after |= entry.after
    others = [change for change in changes_between(before, after) if change.field in EDITED]
    return others + changes


def version_get(agent: Agent, number: int) -> AgentVersion:
    """Raises VersionNotFound."""
    version = _version(agent, number)
    if version is None:
        raise VersionNotFound()
    return version


def _version(agent: Agent, number: int) -> AgentVersion | None:
    found: AgentVersion | None = AgentVersion.objects.filter(agent=agent, number=number).first()
    return found


def version_list(agent: Agent, before: int | None, limit: int) -> list[AgentVersion]:
    """The agent's versions, newest first, `limit` of them below `before`."""
    rows = AgentVersion.objects.filter(agent=agent).order_by("-number")
    return list(rows.filter(number__lt=before)[:limit] if before else rows[:limit])


def version_resource(agent: Agent, version: AgentVersion) -> VersionResource:
    """A version as the API shows it."""
    return VersionResource(
        agent_id=agent.pk,
        version=version.number,
        author=version.author,
        note=version.note,
        published=version.pk == agent.published_id,
        created_at=version.created_at,
        config=AgentConfig(**version.config),
    )


def version_changes(before: AgentVersion, after: AgentVersion) -> list[Change]:
    """What differs between two versions: `config.temperature`, …"""
    return changes_between(config_shown(before), config_shown(after), prefix="config.")


def config_shown(version: AgentVersion) -> dict[str, Any]:
    """The version's configuration with everything that it leaves to the defaults."""
    return AgentConfig(**version.config).model_dump(mode="json")
