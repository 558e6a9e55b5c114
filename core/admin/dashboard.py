"""The console's first page: what happens now, what failed, what it costs."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from django.db.models import Count, Sum
from django.http import HttpRequest
from django.utils import timezone

from core.admin.console import counted, moment, shown_dollars
from core.admin.tasks import COLOURS
from core.models import Task, UsageRecord
from core.models.task import FINAL, TaskStatus

FAILURES = 8
TENANTS = 10


def first_id(moment: datetime.datetime) -> uuid.UUID:
    """The lowest id that a task made at `moment` can have: ids count milliseconds.

    So a look at the last hours is a range of the primary key, however long the table is.
    """
    return uuid.UUID(int=int(moment.timestamp() * 1000) << 80)


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Unfold's DASHBOARD_CALLBACK. Nobody sees figures of rows that they may not see."""
    now = timezone.now()
    day_ago = first_id(now - datetime.timedelta(hours=24))
    if request.user.has_perm("core.view_task"):
        context["statuses"] = _statuses(day_ago)
        context["failures"] = _failures(day_ago)
    if request.user.has_perm("core.view_usagerecord"):
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        context["tokens"] = _tokens(today)
    return context


def _statuses(day_ago: uuid.UUID) -> list[dict[str, Any]]:
    """Open tasks as they are now, by their own small index; ended ones of the last 24 hours."""
    rows = Task.unscoped.order_by().values_list("status").annotate(Count("pk"))
    counts = dict(rows.exclude(status__in=FINAL)) | dict(rows.filter(status__in=FINAL, pk__gte=day_ago))
    return [
        {
            "status": status.value,
            "label": status.label,
            "count": counts.get(status.value, 0),
            "variant": COLOURS[status],
            "final": status in FINAL,
        }
        for status in TaskStatus
    ]


def _failures(day_ago: uuid.UUID) -> list[dict[str, Any]]:
    rows = Task.unscoped.filter(status=TaskStatus.FAILED, pk__gte=day_ago).order_by("-pk")
    return [
        {"task": task, "when": moment(task.finished_at), "reason": reason_of(task.error or {})}
        for task in rows.only("id", "action", "tenant_id", "error", "finished_at")[:FAILURES]
    ]


def reason_of(error: dict[str, Any]) -> str:
    """`Type: message` of a failed task."""
    kind = error.get("type") or error.get("error_type") or ""
    return f"{kind}: {error.get('message') or error.get('error') or ''}"


def _tokens(today: datetime.datetime) -> list[dict[str, Any]]:
    """What today's calls have used, the hungriest tenants first."""
    sums = {"prompt": Sum("prompt_tokens"), "completion": Sum("completion_tokens"), "cost": Sum("cost")}
    rows = (
        UsageRecord.unscoped.filter(created_at__gte=today)
        .values("tenant_id")
        .annotate(calls=Count("pk"), **sums)
        .order_by("-prompt", "tenant_id")
    )
    return [
        {
            **row,
            "prompt": counted(row["prompt"]),
            "completion": counted(row["completion"]),
            "cost": shown_dollars(row["cost"]),
        }
        for row in rows[:TENANTS]
    ]
