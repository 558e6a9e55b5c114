"""Budgets: what is left of them, and what is held, taken and told.

Everything here is a tenant's with budgets; the others pay one look at `tenant_limits`. The rows of
BudgetUse are locked in the order of their budgets, in short transactions that lock nothing else
afterwards: nobody waits in a circle.
"""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db import connection

from core.errors import BudgetExhausted, NoPrice
from core.events.budgets import BudgetState, BudgetThreshold
from core.models import Budget, BudgetUse
from core.outbox import notify
from core.prices import MILLION, Price
from core.tenancy import current_tenant_id

THRESHOLDS = (100, 80)  # percent
# Of an answer: with fewer tokens none is begun, and with so many one does not wait for what others hold.
LEAST_OUTPUT, COMFORTABLE_OUTPUT = 16, 1_024
HELD_SECONDS = 5  # after which others may have given back what they hold
DAY_SECONDS = 24 * 60 * 60

# The budgets that a call counts in, each with the beginning of its present period.
_APPLYING = """
    SELECT id, tenant_id, subject, agent_id, period, limit_tokens, limit_cost,
        CASE WHEN subject = 'end_user' THEN %(end_user)s ELSE '' END AS who,
        CASE period WHEN 'day' THEN date_trunc('day', now(), 'UTC')
            WHEN 'month' THEN date_trunc('month', now(), 'UTC') ELSE created_at END AS begins
    FROM core_budget
    WHERE tenant_id = %(tenant_id)s AND (agent_id IS NULL OR agent_id = %(agent_id)s)
        AND (subject <> 'end_user' OR end_user IN ('', %(end_user)s))
"""
_COLUMNS = (
    "id, budget.subject, budget.agent_id, budget.period, budget.limit_tokens, budget.limit_cost, used.id,"
    " COALESCE(used.spent_tokens, 0), COALESCE(used.held_tokens, 0), COALESCE(used.spent_cost, 0),"
    " COALESCE(used.held_cost, 0), used.told"
)

# The rows in which a call (`was`) counts, locked in their order.
_MINE = (
    "mine AS MATERIALIZED (SELECT used.id FROM core_budgetuse AS used, was"
    " WHERE used.id = ANY (was.charged) ORDER BY used.budget_id FOR NO KEY UPDATE OF used)"
)


@dataclass(frozen=True, slots=True)
class Use:
    """A budget and what its present period has seen; `row_id` is the BudgetUse's."""

    budget_id: uuid.UUID
    subject: str
    agent_id: uuid.UUID | None
    period: str
    limit_tokens: int | None
    limit_cost: Decimal | None
    row_id: int | None
    spent_tokens: int
    held_tokens: int
    spent_cost: Decimal
    held_cost: Decimal
    told: int | None
    end_user: str
    begins_at: datetime.datetime

    @property
    def percent(self) -> int:
        """How much is spent, by the limit that is nearer."""
        tokens = self.spent_tokens * 100 // self.limit_tokens if self.limit_tokens else 0
        cost = int(self.spent_cost * 100 / self.limit_cost) if self.limit_cost else 0
        return max(tokens, cost)

    @property
    def resets_at(self) -> datetime.datetime | None:
        return period_end(self.period, self.begins_at)

    def output(self, need: Need, price: Price | None, *, held: bool) -> int:
        """How many tokens of an answer are left behind the prompt; negative when the prompt is too much.

        With or without what calls under way hold. Raises NoPrice.
        """
        left = need.output
        if self.limit_tokens is not None:
            taken = self.spent_tokens + (self.held_tokens if held else 0)
            left = min(left, self.limit_tokens - taken - need.prompt)
        if self.limit_cost is not None:
            if price is None:
                raise NoPrice()
            cost = self.limit_cost - self.spent_cost - (self.held_cost if held else 0)
            cost -= price.cost(need.prompt, 0)
            if cost < 0:
                return -1
            if price.completion:
                left = min(left, int(cost * MILLION / price.completion))
        return left


@dataclass(frozen=True, slots=True)
class Need:
    """The most that a call can take, in tokens: of its prompt, and of the answer that it wants."""

    prompt: int
    output: int


def period_begin(budget: Budget) -> datetime.datetime:
    """When the budget's present period began, to show it; calls ask the database's clock."""
    midnight = datetime.datetime.now(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if budget.period == "day":
        return midnight
    return midnight.replace(day=1) if budget.period == "month" else budget.created_at


def period_end(period: str, begins_at: datetime.datetime) -> datetime.datetime | None:
    """When the period that began so ends; a total never does."""
    if period == "day":
        return begins_at + datetime.timedelta(days=1)
    if period == "month":
        return (begins_at + datetime.timedelta(days=31)).replace(day=1)
    return None


def locked(tenant_id: str, agent_id: uuid.UUID, end_user: str) -> list[Use]:
    """The budgets that a call of the agent for the end user counts in, until the transaction ends.

    A period's first call makes its row; for every other one the update changes nothing and locks. Nobody
    lifts the budgets meanwhile: the row would belong to none, and the transaction fail at its end.
    """
    return _uses(
        f"WITH budget AS ({_APPLYING} FOR KEY SHARE), used AS ("
        " INSERT INTO core_budgetuse AS used (tenant_id, budget_id, end_user, begins_at)"
        " SELECT tenant_id, id, who, begins FROM budget ORDER BY id"
        " ON CONFLICT (budget_id, end_user, begins_at) DO UPDATE SET held_tokens = used.held_tokens"
        f" RETURNING *) SELECT budget.{_COLUMNS}, budget.who, budget.begins"
        " FROM budget JOIN used ON used.budget_id = budget.id",
        {"tenant_id": tenant_id, "agent_id": agent_id, "end_user": end_user},
    )


def seen(tenant_id: str, agent_id: uuid.UUID, end_user: str) -> list[Use]:
    """The same to look at."""
    return _uses(
        f"WITH budget AS ({_APPLYING}) SELECT budget.{_COLUMNS}, budget.who, budget.begins FROM budget"
        " LEFT JOIN core_budgetuse AS used ON used.budget_id = budget.id"
        " AND used.end_user = budget.who AND used.begins_at = budget.begins",
        {"tenant_id": tenant_id, "agent_id": agent_id, "end_user": end_user},
    )


def granted(uses: Sequence[Use], need: Need, price: Price | None, *, patient: bool) -> int | None:
    """How many tokens the answer may have, of those it wants; None while waiting may give it more.

    It waits, if it is `patient`, for what calls under way hold and will give back in part.
    Raises BudgetExhausted, and NoPrice where a budget is in dollars.
    """
    now = min(use.output(need, price, held=True) for use in uses)
    if now >= min(need.output, COMFORTABLE_OUTPUT):
        return now
    later = min(use.output(need, price, held=False) for use in uses)
    if patient and later > now:
        return None
    least = min(need.output, LEAST_OUTPUT)
    if now >= least:
        return now
    tightest = min(uses, key=lambda use: use.output(need, price, held=True))
    raise exhausted(tightest, held=later >= least)


def count_earlier(budget: Budget) -> None:
    """A new budget's day or month has begun before it: what it has seen counts. In its transaction.

    Of calls under way nothing does.
    """
    if budget.period == Budget.Period.TOTAL:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO core_budgetuse (tenant_id, budget_id, end_user, begins_at, spent_tokens, spent_cost)"
            " SELECT budget.tenant_id, budget.id,"
            " CASE WHEN budget.subject = 'end_user' THEN call.end_user ELSE '' END AS who, period.begins,"
            " sum(call.prompt_tokens + call.completion_tokens + call.reserved_tokens),"
            " sum(COALESCE(call.cost, 0) + call.reserved_cost)"
            " FROM core_budget AS budget CROSS JOIN LATERAL"
            " (SELECT date_trunc(budget.period, now(), 'UTC') AS begins) AS period"
            " JOIN core_usagerecord AS call ON call.tenant_id = budget.tenant_id"
            " AND call.created_at >= period.begins AND NOT call.held"
            " AND (budget.agent_id IS NULL OR call.agent_id = budget.agent_id)"
            " AND (budget.subject <> 'end_user' OR budget.end_user IN ('', call.end_user))"
            " WHERE budget.id = %s"
            " GROUP BY budget.tenant_id, budget.id, who, period.begins",
            [budget.pk],
        )


def refuse_exhausted(
    tenant_id: str, agent_id: uuid.UUID, end_user: str, need: Need, price: Price | None
) -> None:
    """Before a message is accepted: raises BudgetExhausted where its run could not begin in this period.

    What calls under way hold is not counted: much of it comes back.
    """
    for use in seen(tenant_id, agent_id, end_user):
        if use.output(need, price, held=False) < min(need.output, LEAST_OUTPUT):
            raise exhausted(use)


def exhausted(use: Use, *, held: bool = False) -> BudgetExhausted:
    """The refusal. Callers are the tenant's public: they learn neither limit nor use."""
    resets_at = use.resets_at
    if held:
        seconds = HELD_SECONDS
    elif resets_at is None:
        seconds = DAY_SECONDS
    else:
        left = resets_at - datetime.datetime.now(datetime.UTC)
        seconds = max(1, math.ceil(left.total_seconds()))
    details = {
        "subject": use.subject,
        "period": use.period,
        "resets_at": resets_at.isoformat() if resets_at else None,
    }
    return BudgetExhausted(details=details, retry_after=seconds)


def take(
    row: str, values: dict[str, Any], *, tokens: int = 0, cost: Decimal | None = None, keep: bool = False
) -> None:
    """A call under way has ended: what it held is given back, and what it took is counted.

    `row` is the condition that finds its usage record, with `values`. With `keep` all that it held is
    counted, since nobody will ever know what it took. In a transaction. One that holds nothing stays.
    """
    tokens_kept, cost_kept = ("was.reserved_tokens", "was.reserved_cost") if keep else ("0", "0")
    uses = _uses(
        "WITH was AS MATERIALIZED ("
        f" SELECT id, charged, reserved_tokens, reserved_cost FROM core_usagerecord WHERE held AND {row}"
        " FOR NO KEY UPDATE), ended AS ("
        " UPDATE core_usagerecord AS call SET held = false,"
        f" reserved_tokens = {tokens_kept}, reserved_cost = {cost_kept}"
        f" FROM was WHERE call.id = was.id), {_MINE}"
        " UPDATE core_budgetuse AS used SET"
        " held_tokens = used.held_tokens - was.reserved_tokens,"
        " held_cost = used.held_cost - was.reserved_cost,"
        f" spent_tokens = used.spent_tokens + %(tokens)s + {tokens_kept},"
        f" spent_cost = used.spent_cost + %(cost)s + {cost_kept}"
        " FROM mine, was, core_budget AS budget WHERE used.id = mine.id AND budget.id = used.budget_id"
        f" RETURNING budget.{_COLUMNS}, used.end_user, used.begins_at",
        {**values, "tokens": tokens, "cost": cost or Decimal(0)},
    )
    for use in uses:
        tell(use, next((mark for mark in THRESHOLDS if use.percent >= mark), 0))


def give_back(row: str, values: dict[str, Any]) -> None:
    """A call was never made: its record goes, and what it held is free."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH was AS (DELETE FROM core_usagerecord WHERE held AND {row}"
            f" RETURNING charged, reserved_tokens, reserved_cost), {_MINE}"
            " UPDATE core_budgetuse AS used SET held_tokens = used.held_tokens - was.reserved_tokens,"
            " held_cost = used.held_cost - was.reserved_cost FROM mine, was WHERE used.id = mine.id",
            values,
        )


def tell(use: Use, threshold: int) -> None:
    """Tell the tenant that the period has reached the threshold, once; in a transaction."""
    if threshold <= (use.told or 0):
        return
    BudgetUse.objects.filter(pk=use.row_id).update(told=threshold)
    state = BudgetState(
        budget_id=use.budget_id,
        subject=use.subject,
        agent_id=use.agent_id,
        end_user=use.end_user,
        period=use.period,
        threshold=threshold,
        begins_at=use.begins_at,
        resets_at=use.resets_at,
        used_tokens=use.spent_tokens,
        used_cost=dollars_text(use.spent_cost),
        limit_tokens=use.limit_tokens,
        limit_cost=dollars_text(use.limit_cost) if use.limit_cost is not None else None,
    )
    about = {"task_id": None, "global_task_id": None, "session_id": None}
    notify(BudgetThreshold(tenant_id=current_tenant_id(), data=state, **about), use.budget_id)


def dollars_text(amount: Decimal) -> str:
    """An amount as JSON has it: exact, without an exponent or zeros that say nothing."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _uses(statement: str, values: dict[str, Any]) -> list[Use]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        rows: Iterable[tuple[Any, ...]] = cursor.fetchall()
    return [Use(*row) for row in rows]
