"""What agent management tells of itself.

The classes are what a tenant's dashboards and webhooks hear; each `notify_…` writes one into the
outbox, in the transaction of what it tells. Names that the platform's documents have twice for one
fact are told twice, the second time marked with `alias_of`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from agents.models import Agent, AgentTemplate
from core.events.base import Event, EventData, Service
from core.outbox import notify

# Every event by its name, and the second names.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "agent_validated": ("validation_complete",),
    "template_created": ("agent_template_created",),
}


class ManagementEvent(Event):
    service: Service = "agent-management"


class AgentNotice(EventData):
    """An agent at the moment of the notice; `version` is `"{n}.0"`."""

    agent_id: uuid.UUID
    agent_name: str
    agent_type: str
    version: str = "1.0"


class AgentChange(AgentNotice):
    """`changes` names the fields that have changed, dotted: `name`, `config.model`."""

    changes: list[str] = Field(default_factory=list)


class AgentCheck(AgentNotice):
    """What a check found: with `errors` the agent will not answer, with `warnings` it may."""

    valid: bool = True
    errors: list[Any] = Field(default_factory=list)
    warnings: list[Any] = Field(default_factory=list)


class TemplateNotice(EventData):
    """A tenant's own template at the moment of the notice."""

    template_id: str
    template_name: str
    agent_type: str


class AgentCreated(ManagementEvent):
    """A new agent, with its first version."""

    event: Literal["agent_created"] = "agent_created"
    data: AgentNotice


class AgentUpdated(ManagementEvent):
    """An agent has changed; a changed configuration is a new version."""

    event: Literal["agent_updated"] = "agent_updated"
    data: AgentChange


class AgentDeleted(ManagementEvent):
    """An agent answers nobody any more."""

    event: Literal["agent_deleted"] = "agent_deleted"
    data: AgentNotice


class AgentValidated(ManagementEvent):
    """A validation has ended."""

    event: Literal["agent_validated"] = "agent_validated"
    data: AgentCheck


class TemplateCreated(ManagementEvent):
    """A new template of the tenant's."""

    event: Literal["template_created"] = "template_created"
    data: TemplateNotice


class TemplateUpdated(ManagementEvent):
    """A template of the tenant's has changed."""

    event: Literal["template_updated"] = "template_updated"
    data: TemplateNotice


AgentKind = Literal["agent_created", "agent_updated", "agent_deleted"]
TemplateKind = Literal["template_created", "template_updated"]

EVENTS: Mapping[str, type[ManagementEvent]] = {
    "agent_created": AgentCreated,
    "agent_updated": AgentUpdated,
    "agent_deleted": AgentDeleted,
    "agent_validated": AgentValidated,
    "template_created": TemplateCreated,
    "template_updated": TemplateUpdated,
}


def names() -> list[str]:
    """Every name under which agent management tells something."""
    return sorted({*EVENTS, *(alias for aliases in ALIASES.values() for alias in aliases)})


def tell(
    event: type[ManagementEvent], data: EventData, subject: Any, tenant_id: str, **envelope: Any
) -> None:
    """Write an event of that kind into the outbox, and once more under each of its second names."""
    fields = {"task_id": None, "global_task_id": None, "session_id": None, **envelope}
    made = event(tenant_id=tenant_id, data=data, **fields)
    notify(made, subject, aliases=ALIASES.get(made.event, ()))


def notify_agent(kind: AgentKind, agent: Agent, changes: Sequence[str] = ()) -> None:
    """Tell what happened to an agent; `changes` of `agent_updated` are the names of fields."""
    if kind == "agent_updated":
        data: AgentNotice = AgentChange(**_agent(agent), changes=list(changes))
    else:
        data = AgentNotice(**_agent(agent))
    tell(EVENTS[kind], data, agent.pk, agent.tenant_id)


def notify_validated(
    agent: Agent, *, valid: bool, errors: Sequence[Any] = (), warnings: Sequence[Any] = ()
) -> None:
    """Tell what a validation of the agent found; each finding is JSON-able."""
    found = AgentCheck(**_agent(agent), valid=valid, errors=list(errors), warnings=list(warnings))
    tell(AgentValidated, found, agent.pk, agent.tenant_id)


def notify_template(kind: TemplateKind, template: AgentTemplate) -> None:
    """Tell what happened to a tenant's own template; one that is everybody's is nobody's news."""
    if template.tenant_id is None:
        return
    data = TemplateNotice(template_id=str(template.pk), template_name=template.name, agent_type=template.type)
    tell(EVENTS[kind], data, f"template:{template.pk}", template.tenant_id)


def _agent(agent: Agent) -> dict[str, Any]:
    number = agent.version.number if agent.version is not None else 1
    return {
        "agent_id": agent.pk,
        "agent_name": agent.name,
        "agent_type": agent.type,
        "version": f"{number}.0",
    }
