"""What time does to batches: those that nobody feeds are fed, and old ones are deleted.

Beat sends a round every minute; a worker does it. One that is lost is made up for by the next, and two at
once do no harm.
"""

from __future__ import annotations

import datetime
import logging
import time

from celery import Celery
from django.db import transaction
from django.db.models.functions import Now

from core.actions.bus import enqueue
from core.audit import record
from core.models import Task, Tenant, UsageRecord
from core.models.task import FINAL
from core.tenancy import across_tenants, current_tenant_id, tenant_scope
from orchestrator.batches.actions import BatchFeedAction
from orchestrator.models import OPEN_BATCHES, Batch, BatchItem

logger = logging.getLogger(__name__)

ROUND = "batch.round"
SECONDS = 60.0  # between two rounds
LONGEST = 45.0  # seconds that one may take: what is left waits for the next one
SLICE = 500  # items that one transaction deletes


def register(app: Celery) -> None:
    """Make the round known to the app."""
    app.task(name=ROUND)(turn)


def turn() -> None:
    """One round. Raises what the database raises: what is done by then stays done."""
    ends_at = time.monotonic() + LONGEST
    with across_tenants():
        working = list(Batch.unscoped.filter(status__in=OPEN_BATCHES).values_list("tenant_id").distinct())
        bounds = Tenant.objects.exclude(retention_days=None).values_list("pk", "retention_days")
        keeping = [(tenant_id, days) for tenant_id, days in bounds if days is not None]
    for (tenant_id,) in working:
        with tenant_scope(tenant_id):
            feed_left()
    for tenant_id, days in keeping:
        with tenant_scope(tenant_id):
            purge(days, ends_at)


def feed_left() -> None:
    """Have the current tenant's batches fed, unless somebody is about to.

    Needed when the callback of a run has failed: every other way feeds them by itself.
    """
    asked = Task.objects.filter(action=BatchFeedAction.verb).exclude(status__in=FINAL)
    if not asked.exists():
        with transaction.atomic():
            enqueue(BatchFeedAction())


def purge(days: int, ends_at: float) -> int:
    """Delete the current tenant's batches that ended so many days ago; how many. What runs cost stays."""
    old = Batch.objects.filter(finished_at__lt=Now() - datetime.timedelta(days=days)).order_by("finished_at")
    deleted = 0
    while time.monotonic() < ends_at:
        with transaction.atomic():
            batch: Batch | None = old.select_for_update(skip_locked=True).first()
            if batch is None:
                break
            items = BatchItem.objects.filter(batch=batch).order_by("position")[:SLICE]
            rows = dict(items.values_list("pk", "task_id"))
            _forget(rows)
            if len(rows) == SLICE:
                continue
            before, after = {"items": batch.total}, {"retention_days": days}
            record(
                "batch.purge", "batch", batch.pk, tenant_id=current_tenant_id(), before=before, after=after
            )
            batch.delete()
        deleted += 1
    return deleted


def _forget(rows: dict[int, object]) -> None:
    """Items with their runs; of what those have cost stays all but for whom it was."""
    tasks = [task_id for task_id in rows.values() if task_id is not None]
    BatchItem.objects.filter(pk__in=rows).delete()
    UsageRecord.objects.filter(task__in=tasks).update(end_user="")
    Task.objects.filter(pk__in=tasks).only("pk").delete()
