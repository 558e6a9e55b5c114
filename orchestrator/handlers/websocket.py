"""What the queue tells sockets: the callbacks of runs, and broadcasts."""

from __future__ import annotations

import asyncio
from typing import Any

from core import aio
from core.actions.registry import handles
from core.events.log import append
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


@handles(WebSocketSendAction, atomic=False)
def send_message(action: WebSocketSendAction) -> None:
    """Tell a session how its task ended: the run's end if nobody has told it yet, then the task's.

    Done twice, the log refuses the second time.
    """
    task = Task.objects.get(pk=action.task_id)
    aio.run(_tell(task))


async def _tell(task: Task) -> None:
    envelope = envelope_of(task)
    error: dict[str, Any] = task.error or {}
    result: dict[str, Any] = task.result or {}
    if task.status == Task.Status.FAILED:
        failure = {"error": error["message"], "error_type": error["type"]}
        await append(AgentExecutionFailed(**envelope, data=RunFailed(**failure)), task.attempt)
        await append(TaskFailed(**envelope, data=Failure(**failure)))
    elif task.status == Task.Status.COMPLETED:
        completed = RunCompleted(**result)
        await append(AgentExecutionCompleted(**envelope, data=completed), task.attempt)
        await append(TaskCompleted(**envelope, data=result))
    else:
        if result:
            completed = RunCompleted(**{**result, "finish_reason": "cancelled"})
            await append(AgentExecutionCompleted(**envelope, data=completed), task.attempt)
        at = task.cancelled_at.isoformat() if task.cancelled_at else None
        details = {"cancelled_at": at, "cancelled_by": task.cancelled_by}
        status = StatusUpdate(status=Task.Status.CANCELLED, details=details)
        await append(TaskWasCancelled(**envelope, data=status))


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

    async def tell() -> None:
        if action.session_ids is None:
            await publish_to_tenant(event(None))
        else:
            await asyncio.gather(*(append(event(session_id)) for session_id in action.session_ids))

    aio.run(tell())
