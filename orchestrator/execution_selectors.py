"""Named reads of runs without a session."""

from __future__ import annotations

import uuid

from django.db.models import Q, QuerySet

from agents.selectors import agent_version
from core.errors import TaskNotFound, ValidationFailed
from core.models import Task
from execution.actions import ExecuteAgentAction
from orchestrator.actions import TaskOutput
from orchestrator.execution_actions import ExecutionResource


def execution_get(task_id: uuid.UUID) -> Task:
    """The current tenant's run of that id, if it has no session. Raises TaskNotFound."""
    task: Task | None = _executions().filter(pk=task_id).first()
    if task is None:
        raise TaskNotFound()
    return task


def execution_list(
    cursor: uuid.UUID | None,
    limit: int,
    *,
    agent_id: uuid.UUID | None = None,
    status: str | None = None,
) -> list[Task]:
    """The current tenant's runs without a session, newest first, `limit` of them older than `cursor`.

    Raises ValidationFailed for a cursor that is none.
    """
    rows = _executions().order_by("-created_at", "-pk")
    if cursor is not None:
        last = _executions().filter(pk=cursor).values_list("created_at", flat=True).first()
        if last is None:
            raise ValidationFailed(details={"cursor": "not a cursor of ours"})
        rows = rows.filter(Q(created_at__lt=last) | Q(created_at=last, pk__lt=cursor))
    if agent_id is not None:
        rows = rows.filter(agent_id=agent_id)
    if status is not None:
        rows = rows.filter(status=status)
    return list(rows[:limit])


def _executions() -> QuerySet[Task]:
    rows: QuerySet[Task] = Task.objects.filter(
        action=ExecuteAgentAction.verb, session_id="", agent_id__isnull=False
    )
    return rows


def execution_resource(task: Task, events_url: str) -> ExecutionResource:
    """The run as the API shows it."""
    run = task.payload
    return ExecutionResource(
        task_id=task.pk,
        agent_id=run["agent_id"],
        version=agent_version(run["version_id"]).number,
        status=task.status,
        priority=task.priority,
        attempt=task.attempt,
        user_id=run.get("end_user", ""),
        metadata=run.get("metadata", {}),
        created_at=task.created_at,
        started_at=task.started_at,
        finished_at=task.finished_at,
        output=TaskOutput(**task.result) if task.result else None,
        error=task.error,
        events_url=events_url,
    )
