"""What time does to sessions: they fall idle, expire, and are deleted when their tenant keeps them no longer.

Beat sends a round every minute; a worker does it. One that is lost is made up for by the next, and two
at once get different rows.
"""

from __future__ import annotations

import datetime
import logging
import time
from typing import Any

from celery import Celery
from django.db import connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from conversations.erasing import erase, lone_runs
from conversations.models import EXPIRES_AFTER, IDLE_AFTER, Session
from core.audit import Origin, asked_by, record
from core.models import Task, Tenant
from core.models.audit import AuditSource
from core.tenancy import across_tenants, tenant_scope

logger = logging.getLogger(__name__)

ROUND = "conversations.round"
LONGEST = 45.0  # seconds that one may take: what is left waits for the next one
SLICE = 1_000  # rows of one statement
BATCH = 100  # sessions that one transaction deletes


def register(app: Celery) -> None:
    """Make the round known to the app."""
    app.task(name=ROUND)(turn)


def turn() -> None:
    """One round. Raises what the database and Valkey raise: what is done by then stays done."""
    ends_at = time.monotonic() + LONGEST
    with across_tenants():
        fall_idle(ends_at)
        expire(ends_at)
        keeping = list(Tenant.objects.exclude(retention_days=None))
    for tenant in keeping:
        assert tenant.retention_days is not None
        with tenant_scope(tenant.pk), asked_by(Origin(AuditSource.QUEUE)):
            purge(tenant.pk, tenant.retention_days, ends_at)
            purge_runs(tenant.retention_days, ends_at)


def fall_idle(ends_at: float) -> int:
    """Those in which nothing was said for half an hour; how many."""
    return _move(("active",), IDLE_AFTER, "state = 'idle'", ends_at)


def expire(ends_at: float) -> int:
    """Those in which nothing was said for a month; how many."""
    change = "state = 'expired', ended_at = statement_timestamp()"
    return _move(("created", "idle"), EXPIRES_AFTER, change, ends_at)


def _move(states: tuple[str, ...], silence: datetime.timedelta, change: str, ends_at: float) -> int:
    """Slice by slice. Sessions that a message has just now are left alone: they are not silent."""
    table, moved = Session._meta.db_table, 0
    values: list[Any] = [list(states), silence, silence, SLICE]
    while time.monotonic() < ends_at:
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {table} SET {change} WHERE id IN (SELECT id FROM {table}"
                " WHERE state = ANY(%s) AND created_at < statement_timestamp() - %s"
                " AND last_active_at < statement_timestamp() - %s"
                " ORDER BY created_at LIMIT %s FOR NO KEY UPDATE SKIP LOCKED)",
                values,
            )
            count = cursor.rowcount
        moved += count
        if count < SLICE:
            break
    return moved


def purge(tenant_id: str, days: int, ends_at: float) -> int:
    """Delete sessions of the current tenant in which nothing was said for so many days; how many."""
    deleted, after = 0, 0
    while time.monotonic() < ends_at:
        with transaction.atomic():
            found = list(_silent(days).filter(pk__gt=after).order_by("pk")[:BATCH])
            # What a worker is still at is left for a later round.
            over = [session for session in found if not Task.line_up(session.serial_key)]
            if over:
                erase(over)
                record(
                    "session.purge",
                    "tenant",
                    tenant_id,
                    tenant_id=tenant_id,
                    before={"sessions": len(over), "retention_days": days},
                    after={"retention_days": days},
                )
        deleted += len(over)
        if len(found) < BATCH:
            break
        after = found[-1].pk
    if deleted:
        logger.info("%s: %s sessions were older than %s days", tenant_id, deleted, days)
    return deleted


def purge_runs(days: int, ends_at: float) -> int:
    """Delete the current tenant's runs without a session that ended so many days ago; how many."""
    deleted = 0
    while time.monotonic() < ends_at:
        before = Now() - datetime.timedelta(days=days)
        rows = lone_runs().filter(created_at__lt=before, finished_at__lt=before).order_by("created_at")
        found = list(rows.values_list("pk", flat=True)[:SLICE])
        Task.objects.filter(pk__in=found).delete()
        deleted += len(found)
        if len(found) < SLICE:
            break
    return deleted


def _silent(days: int) -> QuerySet[Session]:
    """Locked, so that no message comes in between."""
    before = Now() - datetime.timedelta(days=days)
    rows: QuerySet[Session] = Session.objects.filter(
        created_at__lt=before, last_active_at__lt=before, deleted_at=None
    )
    return rows.select_for_update(no_key=True, skip_locked=True)
