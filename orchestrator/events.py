"""The orchestrator's standard events."""

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


class OrchestratorEvent(Event):
    service: Service = "agent-orchestrator"


class StatusUpdate(EventData):
    status: str
    details: dict[str, Any]


class TaskStatusUpdate(OrchestratorEvent):
    """A task moved to `cancelling`."""

    event: Literal["task_status_update"] = "task_status_update"
    data: StatusUpdate


class TaskWasCancelled(TaskStatusUpdate):
    """The last word of a cancelled task."""

    closes = "task"


class TaskCompleted(OrchestratorEvent):
    """The last word of a completed task; `data` is its result."""

    event: Literal["task_completed"] = "task_completed"
    closes = "task"
    data: dict[str, Any]


class Failure(EventData):
    error: str
    error_type: str


class TaskFailed(OrchestratorEvent):
    """The last word of a failed task."""

    event: Literal["task_failed"] = "task_failed"
    closes = "task"
    data: Failure


class Broadcast(OrchestratorEvent):
    """Whatever a service or an admin wants a tenant's sockets to hear."""

    data: dict[str, Any]
