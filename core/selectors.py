"""Named reads of the ground floor."""

from __future__ import annotations

import datetime
import logging
import uuid
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Exists, OuterRef, Q

from core.actions.end_users import EndUserSecretResource
from core.cache import TimedCache
from core.errors import TenantNotFound
from core.models import AuditEntry, Budget, EndUserSecret, ModelPrice, Task, Tenant
from core.queues.names import Priority
from core.secrets import SecretUnreadable, decrypt
from core.tenancy import across_tenants, tenant_scope

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rates:
    """How often somebody may ask, a minute; None is as often as they like. See `core.ratelimits`."""

    ip_requests: int | None
    ip_connects: int | None
    session_messages: int | None
    agent_requests: int | None
    tenant_requests: int | None

    @classmethod
    def of(cls, *numbers: int | None) -> Rates | None:
        return None if all(number is None for number in numbers) else cls(*numbers)


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant's tier allows, as runs and requests need it."""

    rates: Rates | None  # None where there are none at all: then nobody is counted
    max_waiting: int | None
    max_running: int
    priority_ceiling: int
    uses_environment_keys: bool
    max_run_seconds: float | None
    max_output_tokens: int | None
    suspended: bool
    guarded: bool  # whether any of its agents may be less than open to all
    has_budgets: bool  # of its own, of an agent's, or of end users'
    has_prices: bool  # of its own

    def cap_priority(self, priority: Priority) -> Priority:
        return Priority(min(priority, self.priority_ceiling))


_SUSPENDED: Any = Q(suspended_at__isnull=False)

# A change of tier is in force within a second in every process.
_limits: TimedCache[str, TenantLimits] = TimedCache(seconds=1.0)


def tenant_limits(tenant_id: str) -> TenantLimits:
    """Raises TenantNotFound."""
    found = _limits.get(tenant_id, _load)
    if found is None:
        raise TenantNotFound()
    return found


def tenant_changed(tenant_id: str) -> None:
    """For the process that has changed it, and need not wait for the second."""
    _limits.forget(tenant_id)


def tenant_peek(tenant_id: str) -> TenantLimits | None:
    """The same, if it was asked for within the last second: for those who must not wait."""
    return _limits.peek(tenant_id)


# What is kept for everybody is read as nobody: whose scope asks first must not matter.
@across_tenants()
def _load(tenant_id: str) -> TenantLimits | None:
    row = (
        Tenant.objects.filter(pk=tenant_id)
        .values_list(
            "tier__ip_requests_per_minute",
            "tier__ip_connects_per_minute",
            "tier__session_messages_per_minute",
            "tier__agent_requests_per_minute",
            "tier__tenant_requests_per_minute",
            "tier__max_waiting",
            "tier__max_running",
            "tier__priority_ceiling",
            "tier__uses_environment_keys",
            "tier__max_run_seconds",
            "tier__max_output_tokens",
            _SUSPENDED,
            "guarded",
            Exists(Budget.unscoped.filter(tenant=OuterRef("pk"))),
            Exists(ModelPrice.unscoped.filter(tenant=OuterRef("pk"), withdrawn_at=None)),
        )
        .first()
    )
    return TenantLimits(Rates.of(*row[:5]), *row[5:]) if row else None


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


@across_tenants()
def tenant_queue_limits() -> list[tuple[str, float, int]]:
    """(tenant, weight, cap) of every tenant, for the transport."""
    try:
        return list(Tenant.objects.values_list("pk", "tier__weight", "tier__max_running"))
    finally:
        connection.close()


# Revoked, a secret signs nothing within a second in every process.
_signing: TimedCache[str, dict[str, str]] = TimedCache(seconds=1.0)


def signing_secrets(tenant_id: str) -> dict[str, str]:
    """The living end-user secrets of a tenant, each by its public name."""
    return _signing.get(tenant_id, _load_signing) or {}


def signing_changed(tenant_id: str) -> None:
    """For whoever knows that it is old."""
    _signing.forget(tenant_id)


def _load_signing(tenant_id: str) -> dict[str, str]:
    with tenant_scope(tenant_id):
        rows = list(EndUserSecret.objects.filter(revoked_at=None).order_by("-pk"))
    living = {}
    for row in rows:
        try:
            living[row.prefix] = decrypt(row.encrypted)
        except SecretUnreadable:
            logger.error("end-user secret %s of tenant %s cannot be read", row.prefix, tenant_id)
    return living


def end_user_secret_list() -> list[EndUserSecret]:
    """All of the current tenant's, the revoked ones too, newest first."""
    return list(EndUserSecret.objects.order_by("-pk"))


def end_user_secret_resource(secret: EndUserSecret, text: str | None = None) -> EndUserSecretResource:
    """The secret as the API shows it, with its text only where that was just made."""
    shown = {"secret": text} if text is not None else {}
    return EndUserSecretResource(
        secret_id=secret.prefix,
        name=secret.name,
        created_at=secret.created_at,
        revoked_at=secret.revoked_at,
        **shown,
    )
