"""Named reads of agents."""

from __future__ import annotations

import functools
import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet

from agents.actions import AgentResource, MadeFrom, VersionResource
from agents.config import AgentConfig
from agents.document import FORMAT, FORMAT_VERSION, AgentDocument, secret_slots
from agents.errors import AgentNotFound, VersionNotFound
from agents.models import Agent, AgentVersion
from agents.validation import validation_of
from core.cache import TimedCache
from core.changes import Change, changes_between
from core.ids import parse_uuid
from core.models import AuditEntry

# What people edit of an agent beside its configuration.
EDITED = ("name", "type", "slug", "description", "status", "published_version", "deleted")


@dataclass(frozen=True, slots=True)
class LiveAgent:
    """An agent that answers, with its published version."""

    agent_id: uuid.UUID
    tenant_id: str
    version_id: int


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """A version as a run needs it: immutable, so it may be kept for ever."""

    agent_id: uuid.UUID
    tenant_id: str
    number: int
    config: AgentConfig


# A change is in force within a second in every process, without a message.
_live: TimedCache[uuid.UUID, LiveAgent] = TimedCache(seconds=1.0)
_names: TimedCache[uuid.UUID, str] = TimedCache(seconds=1.0)


def agent_live(agent_id: uuid.UUID) -> LiveAgent:
    """The published agent of whatever tenant: it decides who pays. Raises AgentNotFound."""
    found = _live.get(agent_id, _load_live)
    if found is None:
        raise AgentNotFound()
    return found


def _load_live(agent_id: uuid.UUID) -> LiveAgent | None:
    row = (
        Agent.unscoped.filter(pk=agent_id, deleted_at=None, published__isnull=False)
        .values_list("tenant_id", "published_id")
        .first()
    )
    return LiveAgent(agent_id, *row) if row else None


@functools.lru_cache(maxsize=4096)
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
    return _names.get(agent_id, _load_name) or ""


def _load_name(agent_id: uuid.UUID) -> str | None:
    found: str | None = Agent.unscoped.filter(pk=agent_id).values_list("name", flat=True).first()
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
