"""The kill switch of an agent."""

from __future__ import annotations

from django.db.models.functions import Now

from agents.actions import AgentResource, AgentStopRunsAction, AgentSuspendAction, AgentUnsuspendAction
from agents.handlers.rows import keep, locked
from agents.models import Agent
from agents.selectors import agent_resource, agent_state
from core.actions.bus import enqueue
from core.actions.registry import handles
from core.models import Task
from core.suspension import stop_runs


@handles(AgentSuspendAction)
def suspend(action: AgentSuspendAction) -> AgentResource:
    """Suspending twice keeps the first moment and its reason."""
    agent = locked(action.agent_id, action.if_match)
    if agent.suspended_at is None:
        before = agent_state(agent)
        agent.suspended_at, agent.suspended_reason = Now(), action.reason
        keep(agent, before, verb=action.verb, actor=action.actor)
        agent.refresh_from_db(fields=["suspended_at"])
        enqueue(AgentStopRunsAction(agent_id=agent.pk))
    return agent_resource(agent)


@handles(AgentUnsuspendAction)
def unsuspend(action: AgentUnsuspendAction) -> AgentResource:
    """Switching on what is not switched off changes nothing."""
    agent = locked(action.agent_id, action.if_match)
    before = agent_state(agent)
    agent.suspended_at, agent.suspended_reason = None, ""
    keep(agent, before, verb=action.verb, actor=action.actor)
    return agent_resource(agent)


@handles(AgentStopRunsAction, atomic=False)
def stop_agents_runs(action: AgentStopRunsAction) -> None:
    agent = Agent.objects.filter(pk=action.agent_id, suspended_at__isnull=False)
    stop_runs(Task.objects.filter(agent_id=action.agent_id), agent.exists)
