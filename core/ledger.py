"""What provider calls consume and cost: one row a call, written before it begins and when it has ended.

Where budgets apply, the row is written in one transaction with what the call may take at most; see
`core.budgets`. Killed in between, the row holds that until somebody settles it: nothing leaks.
"""

from __future__ import annotations

import datetime
import functools
import logging
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Now

from core import budgets, metrics
from core.budgets import Need
from core.errors import BudgetExhausted
from core.models import BudgetUse, Task, UsageRecord
from core.models.task import RUNNING
from core.prices import price_of
from core.tenancy import across_tenants, tenant_scope

logger = logging.getLogger(__name__)

LEFT = datetime.timedelta(minutes=1)  # by then whoever ended an attempt has usually settled its calls
KEPT = datetime.timedelta(days=100)  # a budget's past periods

_TABLE = UsageRecord._meta.db_table
_ROW = "task_id = %(task_id)s AND attempt = %(attempt)s AND call = %(call)s"


@dataclass(frozen=True, slots=True)
class Call:
    """A provider call of the task's present attempt; `number` counts them from 1."""

    task: Task
    number: int
    agent_id: uuid.UUID
    session_id: str
    end_user: str
    provider: str
    model: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A call that may be made, as number `call`: `output` bounds its answer, in tokens; None does not."""

    call: int
    output: int | None


def open_call(call: Call, need: Need | None = None, *, patient: bool = False) -> Grant | None:
    """The call follows. Killed afterwards, its row stays `unknown`.

    With a `need` room is reserved in the tenant's budgets; None when a `patient` caller should ask again
    in a moment, since others hold what is missing. An attempt that is begun again, since the database was
    away, has such a row already: nobody knows whether its call was made, and this one gets the next
    number. Raises BudgetExhausted, and NoPrice where a budget is in dollars.
    """
    if need is None:
        return Grant(_insert(call), None)
    task = call.task
    price = price_of(task.tenant_id, call.provider, call.model, need.prompt)
    refusal: BudgetExhausted
    with transaction.atomic():
        uses = budgets.locked(task.tenant_id, call.agent_id, call.end_user)
        if not uses:
            return Grant(_insert(call), None)
        try:
            output = budgets.granted(uses, need, price, patient=patient)
        except BudgetExhausted as error:
            refusal = error
            for use in uses:
                if use.output(need, price, held=False) < budgets.LEAST_OUTPUT:
                    budgets.tell(use, 100)
        else:
            if output is None:
                return None
            cost = price.cost(need.prompt, output) if price is not None else Decimal(0)
            rows = [use.row_id for use in uses]
            number = call.number
            while not _insert_held(call, number, need.prompt + output, cost, rows):
                number += 1
            return Grant(number, output)
    raise refusal


def close_call(
    task: Task,
    call: int,
    *,
    provider: str,
    model: str,
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int,
    accuracy: str,
    held: bool = False,
) -> None:
    """The call has ended: what it took, how accurately that is known, and what it costs.

    In a transaction where the call was granted with a reservation (`held`): the rest of it is free.
    """
    price = cost = None
    if accuracy != UsageRecord.Accuracy.UNKNOWN:
        price = price_of(task.tenant_id, provider, model, prompt_tokens)
    if price is not None:
        cost = price.cost(prompt_tokens, completion_tokens, cached_tokens)
    UsageRecord.objects.filter(task=task, attempt=task.attempt, call=call).update(
        provider=provider,
        model=model,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached_tokens,
        accuracy=accuracy,
        cost=cost,
        price_id=price.row_id if price is not None else None,
    )
    taken = {"prompt": prompt_tokens, "completion": completion_tokens, "cached": cached_tokens}
    transaction.on_commit(functools.partial(_count, task.tenant_id, accuracy, taken, cost), robust=True)
    if held:
        unknown = accuracy == UsageRecord.Accuracy.UNKNOWN
        tokens = prompt_tokens + completion_tokens
        budgets.take(_ROW, _names(task, call), tokens=tokens, cost=cost, keep=unknown)


def _count(tenant_id: str, accuracy: str, tokens: dict[str, int], cost: Decimal | None) -> None:
    """For the metrics: what has been settled. `cached` tokens are among those of the prompt."""
    metrics.SETTLED_CALLS.add(accuracy, tenant_id=tenant_id)
    for kind, number in tokens.items():
        if number:
            metrics.TOKENS.add(kind, accuracy, by=number, tenant_id=tenant_id)
    if cost:
        metrics.COST.add(accuracy, by=float(cost), tenant_id=tenant_id)


def fail_call(task: Task, call: int, *, refused: bool) -> None:
    """A call with a reservation failed before its first token; it stays `unknown`.

    Who was `refused`, or reached nobody, is not billed. Else all that it held is counted: nobody knows.
    """
    with tenant_scope(task.tenant_id), transaction.atomic():
        budgets.take(_ROW, _names(task, call), keep=not refused)


def forget_call(task: Task, call: int, *, held: bool = False) -> None:
    """The call was never made."""
    if held:
        budgets.give_back(_ROW, _names(task, call))
    else:
        UsageRecord.objects.filter(task=task, attempt=task.attempt, call=call).delete()


def keep_calls(task: Task) -> None:
    """The task's attempt is over, and whoever made its calls is gone: they stay `unknown`, and all that
    they hold is counted. In a transaction of its own, where no others wait for it.

    Killed before: `keep_left` finds them.
    """
    with tenant_scope(task.tenant_id):
        _keep(UsageRecord.objects.filter(task=task, attempt=task.attempt, held=True))


@across_tenants()
def keep_left(limit: int = 1_000) -> None:
    """The same for calls of all tenants whose attempt nobody runs any more; the sweeper, twice a minute."""
    running = Task.unscoped.filter(pk=OuterRef("task_id"), attempt=OuterRef("attempt"), status__in=RUNNING)
    rows = UsageRecord.unscoped.filter(~Exists(running), held=True, created_at__lt=Now() - LEFT)
    _keep(rows.order_by("created_at")[:limit])


def _keep(rows: QuerySet[UsageRecord]) -> None:
    for pk, tenant_id in rows.values_list("pk", "tenant_id"):
        logger.warning("usage record %s: nobody knows what its call took", pk)
        with tenant_scope(tenant_id), transaction.atomic():
            budgets.take("id = %(pk)s", {"pk": pk}, keep=True)


@across_tenants()
def forget_uses(limit: int = 5_000) -> None:
    """Delete what budgets of all tenants have seen in periods that ended long ago."""
    old = BudgetUse.unscoped.filter(begins_at__lt=Now() - KEPT).exclude(budget__period="total")
    BudgetUse.unscoped.filter(pk__in=list(old.values_list("pk", flat=True)[:limit])).delete()


def _names(task: Task, call: int) -> dict[str, Any]:
    return {"task_id": task.pk, "attempt": task.attempt, "call": call}


_INSERT = (
    f"INSERT INTO {_TABLE} (tenant_id, task_id, attempt, call, agent_id, session_id, end_user, provider,"
    " model, accuracy, prompt_tokens, completion_tokens, cached_tokens, created_at"
)
_VALUES = "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, 'unknown', 0, 0, 0, now()"
_ONCE = "ON CONFLICT (task_id, attempt, call) DO NOTHING"


def _values(call: Call, number: int) -> list[Any]:
    task = call.task
    known: list[Any] = [task.tenant_id, task.pk, task.attempt, number, call.agent_id]
    return [*known, call.session_id, call.end_user, call.provider, call.model]


def _insert(call: Call) -> int:
    """The number that it got.

    One statement: the ORM's insert that ignores conflicts is a transaction, on the way of every run.
    """
    number = call.number
    with connection.cursor() as cursor:
        while True:
            cursor.execute(f"{_INSERT}) {_VALUES}) {_ONCE}", _values(call, number))
            if cursor.rowcount:
                return number
            number += 1


def _insert_held(call: Call, number: int, tokens: int, cost: Decimal, rows: list[int | None]) -> bool:
    """False when there is such a row already."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH call AS ({_INSERT}, reserved_tokens, reserved_cost, charged, held)"
            f" {_VALUES}, %s, %s, %s, true) {_ONCE} RETURNING id)"
            " UPDATE core_budgetuse SET held_tokens = held_tokens + %s, held_cost = held_cost + %s"
            " FROM call WHERE core_budgetuse.id = ANY (%s)",
            [*_values(call, number), tokens, cost, rows, tokens, cost, rows],
        )
        return bool(cursor.rowcount)
