"""Runs without a session: begin, and tell how they ended."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from django.db import transaction

from agents.config import AgentConfig
from agents.published_selectors import version_id_of
from agents.selectors import agent_live, agent_version
from core.actions.base import Action
from core.actions.bus import enqueue, execute
from core.actions.registry import handles
from core.models import Task
from core.outbox import notify
from core.ratelimits import count_question
from core.selectors import tenant_limits
from core.tenancy import current_tenant_id
from execution.accounting import check_budgets
from execution.actions import ExecuteAgentAction, RunMessage
from execution.limits import estimated_tokens, message_tokens
from execution.messages import ChatMessage
from orchestrator.actions import WebSocketSendAction
from orchestrator.admission import check_origin, current_visitor
from orchestrator.errors import ContextTooLong
from orchestrator.events import ending_of
from orchestrator.execution_actions import ExecutionStartAction, ExecutionTellAction, StartedExecution
from orchestrator.throttling import check_room


@handles(ExecutionStartAction, atomic=False)
def start(action: ExecutionStartAction) -> StartedExecution:
    """Killed before the commit: nothing has happened. After it: the sweeper publishes.

    Raises AgentNotFound, OriginRefused, VersionNotFound, RateLimited, QueueFull, ContextTooLong,
    BudgetExhausted, NoPrice.
    """
    tenant_id = current_tenant_id()
    agent = agent_live(action.agent_id, tenant_id)
    check_origin(agent.access, current_visitor())
    version_id = agent.version_id
    if action.version is not None:
        version_id = version_id_of(action.agent_id, action.version)
    version = agent_version(version_id)
    count_question(tenant_id, action.agent_id)
    check_room(tenant_id)
    check_fits(version.config, action.messages)
    said = (message.content for message in action.messages)
    check_budgets(action.agent_id, version_id, action.user_id, said)
    run = ExecuteAgentAction(
        agent_id=action.agent_id,
        version_id=version_id,
        session_id="",
        messages=action.messages,
        options=action.options,
        end_user=action.user_id,
        metadata=action.metadata,
    )
    with transaction.atomic():
        task = enqueue(
            run,
            priority=tenant_limits(tenant_id).cap_priority(action.priority),
            callback=_tells_outside if action.notify else _tells,
            agent_id=action.agent_id,
        )
    return StartedExecution(
        task_id=task.pk,
        agent_id=action.agent_id,
        version=version.number,
        status=task.status,
        queue=task.queue,
        created_at=task.created_at,
    )


def _tells(task_id: uuid.UUID) -> Action[None]:
    return WebSocketSendAction(session_id="", task_id=task_id)


def _tells_outside(task_id: uuid.UUID) -> Action[None]:
    return ExecutionTellAction(task_id=task_id)


def check_fits(config: AgentConfig, messages: Sequence[RunMessage]) -> None:
    """Whether the agent may read all of it: nothing of what a caller sends is left out in silence.

    Raises ContextTooLong.
    """
    given = (ChatMessage(message.role, message.content) for message in messages)
    tokens = estimated_tokens(config.instructions) + sum(map(message_tokens, given))
    if tokens > config.context_tokens:
        raise ContextTooLong(details={"tokens": tokens, "limit": config.context_tokens})


@handles(ExecutionTellAction, atomic=False)
def tell(action: ExecutionTellAction) -> None:
    """Done twice, it tells the same once: the notice's id is the end's."""
    execute(WebSocketSendAction(session_id="", task_id=action.task_id))
    task = Task.objects.get(pk=action.task_id)
    *_, last = ending_of(task)
    event = last.model_copy(update={"event_id": uuid.uuid5(task.pk, "end")})
    with transaction.atomic():
        notify(event, task.pk)
