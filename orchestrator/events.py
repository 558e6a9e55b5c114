"""The orchestrator's standard events."""

from __future__ import annotations

from typing import Any, Literal

from core.events.base import Event, EventData, Service
from core.events.tasks import TaskStatusUpdate


class OrchestratorEvent(Event):
    service: Service = "agent-orchestrator"


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
