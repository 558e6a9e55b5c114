"""What the queue tells sockets: the callbacks of runs, and broadcasts."""

from __future__ import annotations

import asyncio
from typing import Any

from conversations.selectors import session_seq, task_seq
from core import aio
from core.actions.registry import handles
from core.events.base import Event
from core.events.log import append, append_patiently
from core.events.publisher import publish_to_tenant
from core.events.tasks import StatusUpdate, envelope_of
from core.models import Task
from core.tenancy import current_tenant_id
from execution.events import (
    AgentExecutionCompleted,
    AgentExecutionFailed,
    RunCompleted,
    RunFailed,
)
from orchestrator.actions import WebSocketBroadcastAction, WebSocketSendAction
from orchestrator.events import (
    Broadcast,
    Failure,
    OrchestratorEvent,
    TaskCompleted,
    TaskFailed,
    TaskWasCancelled,
)

_NOTHING: dict[str, Any] = {
    "text": "",
    "usage": {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "accuracy": "unknown"},
    "tool_calls": [],
    "citations": [],
}


@handles(WebSocketSendAction, atomic=False)
def send_message(action: WebSocketSendAction) -> None:
    """Tell a session how its task ended: the run's end if nobody has told it yet, then the task's.

    Done twice, the log refuses the second time.
    """
    task = Task.objects.get(pk=action.task_id)
    floor = max(1, task_seq(task.pk))

    async def tell() -> None:
        for event in _ending(task):
            attempt = task.attempt if event.closes == "run" else None
            await append_patiently(event, attempt, floor=floor)

    aio.run(tell())


def _ending(task: Task) -> list[Event]:
    """The events that end a turn: the run's, where there was one, and the task's."""
    envelope = envelope_of(task)
    error: dict[str, Any] = task.error or {}
    result: dict[str, Any] = task.result or {}
    if task.status == Task.Status.FAILED:
        failure = {"error": error["message"], "error_type": error["type"]}
        return [
            AgentExecutionFailed(**envelope, data=RunFailed(**failure)),
            TaskFailed(**envelope, data=Failure(**failure)),
        ]
    if task.status == Task.Status.COMPLETED:
        return [
            AgentExecutionCompleted(**envelope, data=RunCompleted(**result)),
            TaskCompleted(**envelope, data=result),
        ]
    at = task.cancelled_at.isoformat() if task.cancelled_at else None
    details = {"cancelled_at": at, "cancelled_by": task.cancelled_by}
    last = TaskWasCancelled(**envelope, data=StatusUpdate(status=Task.Status.CANCELLED, details=details))
    if task.started_at is None:
        return [last]
    # Between two attempts a run has nothing to show: the first one's text was forgotten.
    completed = RunCompleted(**{**_NOTHING, **result, "finish_reason": "cancelled"})
    return [AgentExecutionCompleted(**envelope, data=completed), last]


@handles(WebSocketBroadcastAction, atomic=False)
def broadcast(action: WebSocketBroadcastAction) -> None:
    """To named sessions: kept in their logs. To the whole tenant: to the sockets that are open now."""
    tenant_id = current_tenant_id()

    def event(session_id: str | None) -> OrchestratorEvent:
        return Broadcast(
            event=action.event,
            task_id=None,
            global_task_id=None,
            tenant_id=tenant_id,
            session_id=session_id,
            data=action.data,
        )

    floors = {session_id: session_seq(session_id) or 0 for session_id in action.session_ids or ()}

    async def tell() -> None:
        if action.session_ids is None:
            await publish_to_tenant(event(None))
        else:
            await asyncio.gather(*(append(event(key), floor=floor) for key, floor in floors.items()))

    aio.run(tell())
