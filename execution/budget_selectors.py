"""Named reads of budgets."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal

from core.budgets import dollars_text, period_begin, period_end
from core.models import Budget, BudgetUse
from execution.budget_actions import BudgetResource, BudgetUsed
from execution.errors import BudgetNotFound


def budget_get(budget_id: uuid.UUID) -> Budget:
    """A budget of the current tenant. Raises BudgetNotFound."""
    budget: Budget | None = Budget.objects.filter(pk=budget_id).first()
    if budget is None:
        raise BudgetNotFound()
    return budget


def budget_list(after: uuid.UUID | None, limit: int) -> list[Budget]:
    """The current tenant's, oldest first, `limit` of them from `after` on."""
    rows = Budget.objects.order_by("pk")
    return list(rows.filter(pk__gt=after)[:limit] if after else rows[:limit])


def budget_resources(budgets: Sequence[Budget]) -> list[BudgetResource]:
    """The budgets as the API shows them."""
    begins = {budget.pk: period_begin(budget) for budget in budgets if not _is_each(budget)}
    rows = BudgetUse.objects.filter(budget__in=begins, begins_at__in=set(begins.values()))
    uses = {(use.budget_id, use.begins_at): use for use in rows}
    return [_resource(budget, begins.get(budget.pk), uses) for budget in budgets]


def budget_resource(budget: Budget) -> BudgetResource:
    return budget_resources([budget])[0]


def _is_each(budget: Budget) -> bool:
    return bool(budget.subject == Budget.Subject.END_USER and not budget.end_user)


def _resource(
    budget: Budget,
    begins_at: datetime.datetime | None,
    uses: Mapping[tuple[uuid.UUID, datetime.datetime], BudgetUse],
) -> BudgetResource:
    used = None
    if begins_at is not None:
        nothing = BudgetUse(spent_tokens=0, spent_cost=Decimal(0), held_tokens=0, held_cost=Decimal(0))
        use = uses.get((budget.pk, begins_at), nothing)
        used = BudgetUsed(
            tokens=use.spent_tokens,
            cost=dollars_text(use.spent_cost),
            reserved_tokens=use.held_tokens,
            reserved_cost=dollars_text(use.held_cost),
            begins_at=begins_at,
            resets_at=period_end(budget.period, begins_at),
        )
    return BudgetResource(
        budget_id=budget.pk,
        subject=budget.subject,
        agent_id=budget.agent_id,
        end_user=budget.end_user or None,
        period=budget.period,
        limit_tokens=budget.limit_tokens,
        limit_cost=dollars_text(budget.limit_cost) if budget.limit_cost is not None else None,
        locked=budget.locked,
        used=used,
        created_at=budget.created_at,
        updated_at=budget.updated_at,
    )
