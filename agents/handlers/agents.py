"""Create, change, delete, restore."""

from __future__ import annotations

from django.db.models.functions import Now

from agents.actions import (
    AgentCreateAction,
    AgentDeleteAction,
    AgentResource,
    AgentRestoreAction,
    AgentUpdateAction,
)
from agents.config import AgentConfig
from agents.handlers.rows import (
    add_version,
    begin,
    config_of,
    keep,
    locked,
    save_with_free_slug,
    slug_of,
)
from agents.models import Agent
from agents.selectors import agent_resource, agent_state
from agents.validation import check_config, check_room
from core.actions.registry import handles
from core.tenancy import current_tenant_id


@handles(AgentCreateAction)
def create(action: AgentCreateAction) -> AgentResource:
    agent = Agent(
        tenant_id=current_tenant_id(),
        name=action.name,
        type=action.type,
        description=action.description,
        status=Agent.Status.DRAFT if action.draft else Agent.Status.PUBLISHED,
        slug=action.slug or slug_of(action.name),
    )
    chosen = action.slug is not None
    begin(agent, action.config, verb=action.verb, actor=action.actor, slug_may_change=not chosen)
    return agent_resource(agent)


@handles(AgentUpdateAction)
def update(action: AgentUpdateAction) -> AgentResource:
    agent = locked(action.agent_id, action.if_match)
    assert agent.version is not None
    before = agent_state(agent)
    for field, value in (
        ("name", action.name),
        ("type", action.type),
        ("description", action.description),
        ("slug", action.slug),
    ):
        if value is not None:
            setattr(agent, field, value)
    if action.config is not None:
        config = config_of({**agent.version.config, **action.config})
        if config != AgentConfig(**agent.version.config):
            check_config(config)
            add_version(agent, config, action.actor, action.note)
    if action.draft:
        agent.published = None
    elif action.draft is False and agent.published is None:
        check_config(config_of(agent.version.config))
        agent.published = agent.version
    elif agent.published is not None and action.config is not None and action.publish:
        agent.published = agent.version
    keep(agent, before, verb=action.verb, actor=action.actor)
    return agent_resource(agent)


@handles(AgentDeleteAction)
def delete(action: AgentDeleteAction) -> None:
    agent = locked(action.agent_id, action.if_match)
    before = agent_state(agent)
    agent.deleted_at = Now()
    keep(agent, before, verb=action.verb, actor=action.actor)


@handles(AgentRestoreAction)
def restore(action: AgentRestoreAction) -> AgentResource:
    """Restoring an agent that is there changes nothing."""
    agent = locked(action.agent_id, action.if_match, also_deleted=True)
    if agent.deleted_at is not None:
        before = agent_state(agent)
        agent.deleted_at = None
        check_room()
        save_with_free_slug(agent, slug_may_change=True)
        keep(agent, before, verb=action.verb, actor=action.actor)
    return agent_resource(agent)
