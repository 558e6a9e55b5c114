"""Named reads of batches."""

from __future__ import annotations

import uuid

from django.db.models import QuerySet

from core.actions.base import ActionError
from core.ids import parse_uuid
from orchestrator.actions import TaskOutput
from orchestrator.batches.actions import BatchResponse, BatchResult
from orchestrator.errors import BatchNotFound
from orchestrator.models import ENDED_ITEMS, Batch, BatchItem


def batch_get(text: str) -> Batch:
    """The current tenant's batch of that id. Raises BatchNotFound."""
    pk = parse_uuid(text)
    batch: Batch | None = Batch.objects.filter(pk=pk).first() if pk is not None else None
    if batch is None:
        raise BatchNotFound()
    return batch


def batch_list(before: uuid.UUID | None, limit: int, status: str | None = None) -> list[Batch]:
    """The current tenant's batches, newest first, `limit` of them older than `before`."""
    rows = Batch.objects.order_by("-pk")
    if before is not None:
        rows = rows.filter(pk__lt=before)
    if status is not None:
        rows = rows.filter(status=status)
    return list(rows[:limit])


def batch_response(batch: Batch, results_url: str) -> BatchResponse:
    """The batch as the API shows it."""
    return BatchResponse(
        batch_id=batch.pk,
        agent_id=batch.agent_id,
        status=batch.status,
        total=batch.total,
        done=batch.done,
        succeeded=batch.succeeded,
        failed=batch.failed,
        cancelled=batch.cancelled,
        created_at=batch.created_at,
        finished_at=batch.finished_at,
        results_url=results_url,
    )


def batch_results(batch_id: uuid.UUID, after: int, limit: int) -> list[BatchResult]:
    """What has ended of the current tenant's batch in the order of its items, `limit` after `after`."""
    rows: QuerySet[BatchItem] = BatchItem.objects.filter(
        batch_id=batch_id, position__gt=after, status__in=ENDED_ITEMS
    )
    return [_result(item) for item in rows.order_by("position")[:limit]]


def _result(item: BatchItem) -> BatchResult:
    assert item.finished_at is not None
    return BatchResult(
        position=item.position,
        custom_id=item.custom_id or None,
        status=item.status,
        task_id=item.task_id,
        output=TaskOutput(**item.result) if item.result else None,
        error=ActionError(**item.error) if item.error else None,
        metadata=item.request["metadata"],
        finished_at=item.finished_at,
    )
