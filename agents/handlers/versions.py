"""Publish, and go back: always forward, to a new version."""

from __future__ import annotations

from django.utils.translation import gettext as _

from agents.actions import AgentPublishAction, AgentResource, AgentRollbackAction
from agents.handlers.rows import add_version, config_of, keep, locked
from agents.selectors import agent_resource, agent_state, version_get
from agents.validation import check_config
from core.actions.registry import handles

NOTE = 500  # characters that a version's note may have


@handles(AgentPublishAction)
def publish(action: AgentPublishAction) -> AgentResource:
    """Publishing what answers already changes nothing."""
    agent = locked(action.agent_id, action.if_match)
    assert agent.version is not None
    before = agent_state(agent)
    if agent.published != agent.version:
        check_config(config_of(agent.version.config))  # it may allow less than when it was written
    agent.published = agent.version
    keep(agent, before, verb=action.verb, actor=action.actor)
    return agent_resource(agent)


@handles(AgentRollbackAction)
def rollback(action: AgentRollbackAction) -> AgentResource:
    """The old configuration becomes a new version, which answers at once if the agent is published."""
    agent = locked(action.agent_id, action.if_match)
    before = agent_state(agent)
    old = version_get(agent, action.version)
    config = config_of(old.config)
    check_config(config)  # it may allow less than it did then
    said = _("Back to version %(version)s") % {"version": old.number}
    note = f"{said}: {action.note}" if action.note else said
    add_version(agent, config, action.actor, note[:NOTE])
    if agent.published is not None:
        agent.published = agent.version
    keep(agent, before, verb=action.verb, actor=action.actor)
    return agent_resource(agent)
