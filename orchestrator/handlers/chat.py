"""Chat: send, look, stop."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Any

import redis
from django.db import transaction
from django.utils.translation import gettext as _

from agents.selectors import agent_live, agent_version
from conversations.actions import ConversationAppendAction, ConversationOpenAction
from conversations.errors import SessionBusy
from conversations.fields import title_of
from conversations.models import serial_key
from conversations.selectors import session_seq
from core.actions.bus import enqueue, execute
from core.actions.registry import handles
from core.actions.tasks import TaskCancelAction
from core.errors import CannotCancel
from core.events.groups import session_name
from core.events.log import begin, last_seq_sync, revive
from core.events.publisher import tell_access
from core.ids import new_session_id
from core.models import Task
from core.ratelimits import count_question
from core.selectors import tenant_limits
from core.tenancy import current_tenant_id
from execution.accounting import check_budgets
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
from orchestrator.admission import admit, admit_to_session
from orchestrator.selectors import chat_task
from orchestrator.throttling import check_room, estimated_seconds

logger = logging.getLogger(__name__)


@handles(ChatSendMessageAction, atomic=False)
def send_message(action: ChatSendMessageAction) -> ChatMessageSent:
    """Question and task in one transaction; the task is published after its commit.

    Killed before the commit: nothing has happened. After it: the sweeper publishes.
    """
    tenant_id = current_tenant_id()
    agent = agent_live(action.agent_id, tenant_id)
    action = admit(agent, action)
    count_question(tenant_id, agent.agent_id, action.session_id)
    check_room(tenant_id)
    session_id = action.session_id or new_session_id()
    user_id = action.user_info.user_id
    check_budgets(agent.agent_id, agent.version_id, user_id, (action.message,))
    # Before the transaction: what waits for Valkey holds no lock of the session's.
    tail = _tail(tenant_id, session_id) if action.session_id else None
    with transaction.atomic():
        session = execute(
            ConversationOpenAction(
                session_id=session_id,
                agent_id=agent.agent_id,
                user_id=user_id,
                user_info=action.user_info.about,
                title=title_of(action.message),
            )
        )
        # Nobody else knows a session that this transaction makes.
        line = [] if session.created else Task.line_up(serial_key(session.row_id))
        if not session.created:
            admit_to_session(agent, session_id)
        elif action.session_id is not None and not agent.access.is_open:
            # Before its first event: who waits for a session of that name may not be the one to hear it.
            transaction.on_commit(partial(tell_access, tenant_id, session_id))
        if line:
            _make_way(agent_version(agent.version_id).config.multitask_strategy, line, user_id)
        task = _enqueue_run(action, agent.version_id, session_id, session.row_id, behind=bool(line))
        execute(
            ConversationAppendAction(
                session_row_id=session.row_id,
                task_id=task.pk,
                role="user",
                text=action.message,
                # A tail that was there before its session may be that of a deleted one.
                seq=_begun(tenant_id, session_id, new=session.created)
                if tail is None or session.created
                else tail,
            )
        )
    sent: dict[str, Any] = {
        "task_id": task.pk,
        "session_id": session_id,
        "status": task.status,
        "queue": task.queue,
        "estimated_time": estimated_seconds(tenant_id, behind=len(line)),
        "websocket_url": f"/ws/{tenant_id}/{session_id}",
        "events_url": f"/api/v1/chat/stream/{task.pk}",
    }
    if session.created:
        sent["resume_token"] = Resume(tenant_id, session_id, from_seq=0).token()
    return ChatMessageSent(**sent)


def _make_way(strategy: str, line: list[Task], user_id: str) -> None:
    """The session has open runs: the message waits behind them, is refused, or ends them."""
    if strategy == "reject":
        raise SessionBusy(details={"task_id": str(line[0].pk)})
    if strategy == "interrupt":
        for task in line:
            # One that is being cancelled, or has just ended, is out of the way already.
            with suppress(CannotCancel):
                execute(TaskCancelAction(task_id=task.pk, by=user_id or "system"))
    else:
        check_room(current_tenant_id(), behind=len(line))


def _enqueue_run(
    action: ChatSendMessageAction, version_id: int, session_id: str, session_row_id: int, *, behind: bool
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
        serial_key=serial_key(session_row_id),
        behind=behind,
    )


def _tail(tenant_id: str, session_id: str) -> int | None:
    """The session's last seq; None when there is no log, or nobody to ask."""
    try:
        return last_seq_sync(session_name(tenant_id, session_id))
    except redis.RedisError:
        logger.warning("the session log is away")
        return None


def _begun(tenant_id: str, session_id: str, *, new: bool) -> int:
    """The last seq of a session that has no log: a new one's is 0, a lost one goes on far above."""
    name = session_name(tenant_id, session_id)
    floor = 0 if new else session_seq(session_id) or 0
    try:
        if not new:
            return revive(name, floor, sure=True)
        return begin(name)
    except redis.RedisError:
        logger.warning("the session log is away")
    return floor


@handles(ChatGetStatusAction, atomic=False)
def get_status(action: ChatGetStatusAction) -> TaskState:
    task = chat_task(action.task_id)
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
    task = chat_task(action.task_id)
    cancelled = execute(
        TaskCancelAction(task_id=task.pk, by=action.user_id or "system", only_if_queued=action.only_if_queued)
    )
    done = cancelled.status == Task.Status.CANCELLED
    return TaskCancelled(
        task_id=task.pk,
        status=cancelled.status,
        message=_("Task cancelled successfully") if done else _("The task is being cancelled"),
    )
