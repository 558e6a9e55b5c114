"""The kill switch of a tenant, and what stops the work of whoever is switched off."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from core.actions.base import Action, TenantId
from core.queues.names import HIGH

Reason = Annotated[str, StringConstraints(max_length=500, strip_whitespace=True)]


class TenantSuspendAction(Action[None]):
    """Switch a tenant off: nobody chats with its agents, what runs or waits of theirs is cancelled."""

    verb = "tenant.suspend"

    tenant_id: TenantId
    reason: Reason = ""


class TenantUnsuspendAction(Action[None]):
    """Switch a tenant on again. What was cancelled stays so."""

    verb = "tenant.unsuspend"

    tenant_id: TenantId


class TenantStopRunsAction(Action[None]):
    """Cancel what runs and waits of the current tenant's agents, while it is switched off."""

    verb = "tenant.stop_runs"
    queue = ("orchestrator", "stop_runs")
    default_priority = HIGH
