"""Named reads of agents."""

from __future__ import annotations

import functools
import uuid
from dataclasses import dataclass

from agents.actions import AgentResource
from agents.config import AgentConfig
from agents.errors import AgentNotFound
from agents.models import Agent, AgentVersion
from core.cache import TimedCache


@dataclass(frozen=True, slots=True)
class LiveAgent:
    """An agent that answers, with the version in force."""

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
        Agent.unscoped.filter(pk=agent_id, deleted_at=None, status=Agent.Status.PUBLISHED)
        .values_list("tenant_id", "version_id")
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
    """An agent of the current tenant. Raises AgentNotFound."""
    agent: Agent | None = Agent.objects.filter(pk=agent_id, deleted_at=None).select_related("version").first()
    if agent is None:
        raise AgentNotFound()
    return agent


def agent_list(after: uuid.UUID | None, limit: int) -> list[Agent]:
    """Agents of the current tenant, oldest first, `limit` of them from `after` on."""
    rows = Agent.objects.filter(deleted_at=None).select_related("version").order_by("pk")
    return list(rows.filter(pk__gt=after)[:limit] if after else rows[:limit])


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
        config=AgentConfig(**agent.version.config),
        created_at=agent.created_at,
        updated_at=agent.updated_at,
    )
