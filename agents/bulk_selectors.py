"""Named reads of mass updates."""

from __future__ import annotations

from django.db.models import Count, Q, QuerySet

from agents.bulk_actions import AgentBulkUpdateAction, BulkCounts, BulkResult, BulkState
from agents.models import AgentBulkItem
from core.actions.base import ActionError
from core.errors import TaskNotFound
from core.ids import parse_uuid
from core.models import Task


def bulk_task(text: str) -> Task:
    """The current tenant's mass update of this id. Raises TaskNotFound."""
    task_id = parse_uuid(text)
    task: Task | None = Task.objects.filter(pk=task_id, action=AgentBulkUpdateAction.verb).first()
    if task is None:
        raise TaskNotFound()
    return task


def bulk_items(task: Task) -> QuerySet[AgentBulkItem]:
    """The agents of a mass update, in order; they hang on the root task, whose work a retry continues."""
    items: QuerySet[AgentBulkItem] = AgentBulkItem.objects.filter(task_id=task.global_task_id)
    return items.order_by("position")


def bulk_counts(task: Task) -> BulkCounts:
    """How far the mass update is."""
    counts = bulk_items(task).aggregate(
        total=Count("pk"), succeeded=Count("pk", filter=Q(ok=True)), failed=Count("pk", filter=Q(ok=False))
    )
    return BulkCounts(done=counts["succeeded"] + counts["failed"], **counts)


def bulk_state(task: Task, after: int | None, limit: int) -> BulkState:
    """The mass update as the API shows it, with `limit` results behind the position `after`."""
    rows = list(bulk_items(task).filter(ok__isnull=False, position__gt=after or 0)[: limit + 1])
    return BulkState(
        task_id=task.pk,
        status=task.status,
        results=[_result(row) for row in rows[:limit]],
        next=str(rows[limit - 1].position) if len(rows) > limit else None,
        **bulk_counts(task).model_dump(),
    )


def _result(row: AgentBulkItem) -> BulkResult:
    return BulkResult(
        agent_id=row.agent_id,
        slug=row.slug or None,
        ok=bool(row.ok),
        version=row.version,
        error=ActionError(**row.error) if row.error is not None else None,
    )
