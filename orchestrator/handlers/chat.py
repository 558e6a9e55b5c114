"""Chat: send, look, stop."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import redis
from django.db import transaction
from django.utils.translation import gettext as _

from agents.errors import AgentNotFound
from agents.selectors import agent_live
from conversations.actions import ConversationAppendAction, ConversationOpenAction
from conversations.selectors import session_seq
from core.actions.bus import enqueue, execute
from core.actions.registry import handles
from core.actions.tasks import TaskCancelAction
from core.errors import TaskNotFound
from core.events.groups import session_name
from core.events.log import begin, last_seq_sync, revive
from core.ids import new_session_id, parse_uuid
from core.models import Task
from core.selectors import tenant_limits
from core.tenancy import current_tenant_id
from execution.actions import ExecuteAgentAction
from orchestrator.access import Resume
from orchestrator.actions import (
    ChatCancelTaskAction,
    ChatGetStatusAction,
    ChatMessageSent,
    ChatSendMessageAction,
    TaskCancelled,
    TaskOutput,
    TaskState,
    WebSocketSendAction,
)

logger = logging.getLogger(__name__)

ESTIMATED_SECONDS = 8.0


@handles(ChatSendMessageAction, atomic=False)
def send_message(action: ChatSendMessageAction) -> ChatMessageSent:
    """Question and task in one transaction; the task is published after its commit."""
    tenant_id = current_tenant_id()
    agent = agent_live(action.agent_id)
    if agent.tenant_id != tenant_id:
        raise AgentNotFound()
    session_id = action.session_id or new_session_id()
    user_id = action.user_info.user_id
    with transaction.atomic():
        session = execute(
            ConversationOpenAction(session_id=session_id, agent_id=agent.agent_id, user_id=user_id)
        )
        task = _enqueue_run(action, agent.version_id, session_id, session.row_id)
        execute(
            ConversationAppendAction(
                session_row_id=session.row_id,
                task_id=task.pk,
                role="user",
                text=action.message,
                seq=_last_seq(tenant_id, session_id, new=session.created),
            )
        )
    sent: dict[str, Any] = {
        "task_id": task.pk,
        "session_id": session_id,
        "status": task.status,
        "queue": task.queue,
        "estimated_time": ESTIMATED_SECONDS,
        "websocket_url": f"/ws/{tenant_id}/{session_id}",
    }
    if session.created:
        sent["resume_token"] = Resume(tenant_id, session_id, from_seq=0).token()
    return ChatMessageSent(**sent)


def _enqueue_run(
    action: ChatSendMessageAction, version_id: int, session_id: str, session_row_id: int
) -> Task:
    run = ExecuteAgentAction(
        agent_id=action.agent_id,
        version_id=version_id,
        session_id=session_id,
        session_row_id=session_row_id,
        end_user=action.user_info.user_id,
        metadata=action.metadata,
    )
    return enqueue(
        run,
        priority=tenant_limits(current_tenant_id()).cap_priority(action.priority),
        callback=lambda task_id: WebSocketSendAction(session_id=session_id, task_id=task_id),
        agent_id=action.agent_id,
        session_id=session_id,
    )


def _last_seq(tenant_id: str, session_id: str, *, new: bool) -> int:
    """The session's tail; a log that was lost begins again, far above it."""
    name = session_name(tenant_id, session_id)
    try:
        if new:
            begin(name)
            return 0
        seq = last_seq_sync(name)
        return revive(name, session_seq(session_id) or 0) if seq is None else seq
    except redis.RedisError:
        logger.warning("the session log is away")
        return 0 if new else session_seq(session_id) or 0


@handles(ChatGetStatusAction, atomic=False)
def get_status(action: ChatGetStatusAction) -> TaskState:
    task = _task(action.task_id)
    return TaskState(
        task_id=task.pk,
        session_id=task.session_id,
        status=task.status,
        queue=task.queue,
        attempt=task.attempt,
        created_at=task.created_at,
        started_at=task.started_at,
        finished_at=task.finished_at,
        output=TaskOutput(**task.result) if task.result else None,
        error=task.error,
    )


@handles(ChatCancelTaskAction, atomic=False)
def cancel_task(action: ChatCancelTaskAction) -> TaskCancelled:
    task = _task(action.task_id)
    cancelled = execute(
        TaskCancelAction(task_id=task.pk, by=action.user_id or "system", only_if_queued=action.only_if_queued)
    )
    done = cancelled.status == Task.Status.CANCELLED
    return TaskCancelled(
        task_id=task.pk,
        status=cancelled.status,
        message=_("Task cancelled successfully") if done else _("The task is being cancelled"),
    )


def _task(text: str) -> Task:
    """The current tenant's chat task. Raises TaskNotFound."""
    task_id: uuid.UUID | None = parse_uuid(text)
    task: Task | None = None
    if task_id is not None:
        task = Task.objects.filter(pk=task_id, action=ExecuteAgentAction.verb).first()
    if task is None:
        raise TaskNotFound()
    return task
