"""What no longer fits when a tier changes: higher floors know it, the console asks here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet

from core.models import Tenant, Tier


@dataclass(frozen=True, slots=True)
class Misfit:
    """Something of a tenant's that its tier would not allow anew: what, and why in words."""

    tenant_id: str
    subject: str
    reason: Any

    def __str__(self) -> str:
        return f"{self.tenant_id}: {self.subject}: {self.reason}"


Check = Callable[[Tier, "QuerySet[Tenant]"], Iterable[Misfit]]
_checks: list[Check] = []


def finds_misfits(check: Check) -> Check:
    """Register a check: `(tier, tenants) -> misfits`; the tier may be one that is not saved yet."""
    _checks.append(check)
    return check


def misfits(tier: Tier, tenants: QuerySet[Tenant]) -> list[Misfit]:
    """What the tenants have that this tier would not allow."""
    return [misfit for check in _checks for misfit in check(tier, tenants)]
