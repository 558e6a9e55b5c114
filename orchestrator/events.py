"""The orchestrator's standard events."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from agents.events import names as management_names
from core.events.base import Event, EventData, Service
from core.events.tasks import StatusUpdate, TaskStatusUpdate, envelope_of
from core.models import Task
from execution.events import AgentExecutionCompleted, AgentExecutionFailed, RunCompleted, RunFailed


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


class DisabledWebhook(EventData):
    """`reason`: `gone`, it answered 410; `failing`, nothing could be delivered for too long."""

    webhook_id: uuid.UUID
    url: str
    reason: str


class WebhookDisabled(OrchestratorEvent):
    """The platform sends nothing to a webhook any more."""

    event: Literal["webhook_disabled"] = "webhook_disabled"
    data: DisabledWebhook


class EndedBatch(EventData):
    """`status`: `completed`, also when items have failed, or `cancelled`. The rest is numbers of items."""

    batch_id: uuid.UUID
    status: str
    total: int
    succeeded: int
    failed: int
    cancelled: int


class BatchCompleted(OrchestratorEvent):
    """The last item of a batch has ended: its results are whole."""

    event: Literal["batch_completed"] = "batch_completed"
    data: EndedBatch


# What dashboards and webhooks can hear: the events of no session.
NOTICES = frozenset(
    {
        *management_names(),
        "batch_completed",
        "budget_threshold",
        "webhook_disabled",
        "task_status_update",
        "task_completed",
        "task_failed",
    }
)


_NOTHING: dict[str, Any] = {
    "text": "",
    "usage": {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "accuracy": "unknown"},
    "tool_calls": [],
    "citations": [],
}


def ending_of(task: Task) -> list[Event]:
    """The events that end the turn of a settled task: the run's, where there was one, and the task's."""
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
