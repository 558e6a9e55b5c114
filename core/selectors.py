"""Named reads of the ground floor."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from django.db import connection
from django.db.models import Q

from core.cache import TimedCache
from core.errors import TenantNotFound
from core.models import AuditEntry, Task, Tenant
from core.queues.names import Priority


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant's tier allows, as runs and requests need it."""

    priority_ceiling: int
    uses_environment_keys: bool
    max_run_seconds: float | None
    max_output_tokens: int | None

    def cap_priority(self, priority: Priority) -> Priority:
        return Priority(min(priority, self.priority_ceiling))


# A change of tier is in force within a second in every process.
_limits: TimedCache[str, TenantLimits] = TimedCache(seconds=1.0)


def tenant_limits(tenant_id: str) -> TenantLimits:
    """Raises TenantNotFound."""
    found = _limits.get(tenant_id, _load)
    if found is None:
        raise TenantNotFound()
    return found


def tenant_is_known(tenant_id: str) -> bool:
    """Whether the tenant was seen within the last second: no answer but the cache's."""
    return _limits.peek(tenant_id) is not None


def _load(tenant_id: str) -> TenantLimits | None:
    row = (
        Tenant.objects.filter(pk=tenant_id)
        .values_list(
            "tier__priority_ceiling",
            "tier__uses_environment_keys",
            "tier__max_run_seconds",
            "tier__max_output_tokens",
        )
        .first()
    )
    return TenantLimits(*row) if row else None


def task_origin(task: Task) -> uuid.UUID:
    """The id of the task that began a chain of retries: its question is theirs. No query for a first try."""
    origin: uuid.UUID = task.pk
    earlier: uuid.UUID | None = task.retry_of_id
    while earlier is not None:
        origin = earlier
        earlier = Task.objects.filter(pk=origin).values_list("retry_of_id", flat=True).first()
    return origin


def audit_list(
    before: int | None,
    limit: int,
    *,
    subject: str = "",
    actor: str = "",
    since: datetime.datetime | None = None,
) -> list[AuditEntry]:
    """The current tenant's changes, newest first, `limit` of them below `before`.

    `subject` is an object's id or a type of objects.
    """
    rows = AuditEntry.objects.order_by("-pk")
    if before is not None:
        rows = rows.filter(pk__lt=before)
    if subject:
        rows = rows.filter(Q(object_id=subject) | Q(object_type=subject))
    if actor:
        rows = rows.filter(actor=actor)
    if since is not None:
        rows = rows.filter(created_at__gte=since)
    return list(rows[:limit])


def tenant_queue_limits() -> Iterator[tuple[str, float, int]]:
    """(tenant, weight, cap) of every tenant, for the transport."""
    try:
        yield from Tenant.objects.values_list("pk", "tier__weight", "tier__max_running").iterator()
    finally:
        connection.close()
