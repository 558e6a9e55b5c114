"""What the sessions of tasks hear of them."""

from __future__ import annotations

from typing import Any, Literal

from core.events.base import Event, EventData, Service
from core.models import Task


def envelope_of(task: Task) -> dict[str, Any]:
    """The fields that every event about the task shares."""
    return {
        "task_id": task.pk,
        "global_task_id": task.global_task_id,
        "tenant_id": task.tenant_id,
        "session_id": task.session_id,
    }


class StatusUpdate(EventData):
    status: str
    details: dict[str, Any]


class TaskStatusUpdate(Event):
    """A task moved to `cancelling`."""

    event: Literal["task_status_update"] = "task_status_update"
    service: Service = "agent-orchestrator"
    data: StatusUpdate


class AttemptFollows(TaskStatusUpdate):
    """A task is `queued` again: its worker was lost, stops, or met a fault. Forget what was streamed."""

    closes = "attempt"
