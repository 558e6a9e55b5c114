"""What the queue tells sockets: the callbacks of runs, and broadcasts."""

from __future__ import annotations

import asyncio

from conversations.selectors import session_seq, task_seq
from core import aio
from core.actions.registry import handles
from core.events.log import append, append_patiently
from core.events.publisher import publish_to_tenant
from core.models import Task
from core.tenancy import current_tenant_id
from orchestrator.actions import WebSocketBroadcastAction, WebSocketSendAction
from orchestrator.events import Broadcast, OrchestratorEvent, ending_of


@handles(WebSocketSendAction, atomic=False)
def send_message(action: WebSocketSendAction) -> None:
    """Tell a session how its task ended: the run's end if nobody has told it yet, then the task's.

    Done twice, the log refuses the second time.
    """
    task = Task.objects.filter(pk=action.task_id).first()
    if task is None:
        return  # deleted with its session
    # What never began has told nobody anything.
    floor = max(1, task_seq(task.pk)) if task.session_id or task.started_at is not None else 0

    async def tell() -> None:
        for event in ending_of(task):
            attempt = task.attempt if event.closes == "run" else None
            await append_patiently(event, attempt, floor=floor)

    aio.run(tell())


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
