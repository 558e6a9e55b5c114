"""Budgets: made, changed, lifted; on record each time."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import IntegrityError, transaction

from agents.errors import AgentNotFound
from agents.models import Agent
from core.actions.registry import handles
from core.audit import record
from core.budgets import count_earlier, dollars_text
from core.errors import ValidationFailed
from core.models import Budget, BudgetUse
from core.tenancy import current_tenant_id
from execution.budget_actions import (
    BudgetCreateAction,
    BudgetDeleteAction,
    BudgetResource,
    BudgetUpdateAction,
)
from execution.budget_selectors import budget_resource
from execution.errors import BudgetExists, BudgetLocked, BudgetNotFound, TooManyBudgets

MOST = 1_000  # budgets of one tenant: each of its calls looks through them


@handles(BudgetCreateAction)
def create(action: BudgetCreateAction) -> BudgetResource:
    if action.agent_id is not None and not Agent.objects.filter(pk=action.agent_id, deleted_at=None).exists():
        raise AgentNotFound()
    if action.locked and not action.by_operator:
        raise BudgetLocked()
    if Budget.objects.count() >= MOST:
        raise TooManyBudgets(details={"limit": MOST})
    budget = Budget(
        tenant_id=current_tenant_id(),
        subject=action.subject,
        agent_id=action.agent_id,
        end_user=action.end_user or "",
        period=action.period,
        limit_tokens=action.limit_tokens,
        limit_cost=action.limit_cost,
        locked=action.locked,
    )
    try:
        with transaction.atomic():
            budget.save()
    except IntegrityError as error:
        raise BudgetExists() from error
    count_earlier(budget)
    _on_record(action.verb, budget, before={}, after=_state(budget))
    return budget_resource(budget)


@handles(BudgetUpdateAction)
def update(action: BudgetUpdateAction) -> BudgetResource:
    budget = _locked(action.budget_id, action.by_operator)
    before = _state(budget)
    for name in ("limit_tokens", "limit_cost"):
        if name in action.model_fields_set:
            setattr(budget, name, getattr(action, name))
    if budget.limit_tokens is None and budget.limit_cost is None:
        raise ValidationFailed(details={"limit": "limit_tokens or limit_cost"})
    if action.locked is not None:
        if not action.by_operator:
            raise BudgetLocked()
        budget.locked = action.locked
    after = _state(budget)
    if after != before:
        budget.save()
        # What was said of the old limits says nothing of the new ones.
        BudgetUse.objects.filter(budget=budget, told__gt=0).update(told=0)
        _on_record(action.verb, budget, before=before, after=after)
    return budget_resource(budget)


@handles(BudgetDeleteAction)
def delete(action: BudgetDeleteAction) -> None:
    # Calls that begin hold it (`core.budgets.locked`): their rows are there before all of them go.
    budget = _locked(action.budget_id, action.by_operator, no_key=False)
    _on_record(action.verb, budget, before=_state(budget), after={})
    budget.delete()


def _locked(budget_id: uuid.UUID, by_operator: bool, *, no_key: bool = True) -> Budget:
    rows = Budget.objects.select_for_update(no_key=no_key)
    budget: Budget | None = rows.filter(pk=budget_id).first()
    if budget is None:
        raise BudgetNotFound()
    if budget.locked and not by_operator:
        raise BudgetLocked()
    return budget


def _state(budget: Budget) -> dict[str, Any]:
    """What entries of the record compare."""
    return {
        "subject": budget.subject,
        "agent_id": budget.agent_id,
        "end_user": budget.end_user,
        "period": budget.period,
        "limit_tokens": budget.limit_tokens,
        "limit_cost": dollars_text(budget.limit_cost) if budget.limit_cost is not None else None,
        "locked": budget.locked,
    }


def _on_record(verb: str, budget: Budget, *, before: dict[str, Any], after: dict[str, Any]) -> None:
    record(verb, "budget", budget.pk, tenant_id=budget.tenant_id, before=before, after=after)
