"""The verbs of budgets."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from core.actions.base import Action, Result
from core.rules import WHOLE, at_least_one

Subject = Literal["tenant", "agent", "end_user"]
Period = Literal["day", "month", "total"]
Tokens = Annotated[int, Field(ge=1, le=10**15), WHOLE]
Dollars = Annotated[Decimal, Field(gt=0, max_digits=20, decimal_places=6, allow_inf_nan=False)]
LIMITS = ("limit_tokens", "limit_cost")
EndUser = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


class BudgetUsed(BaseModel):
    """What the present period has seen. Costs are US dollars; `reserved` is for calls under way."""

    tokens: int
    cost: str
    reserved_tokens: int
    reserved_cost: str
    begins_at: datetime.datetime
    resets_at: datetime.datetime | None


class BudgetResource(Result):
    """A budget as the API shows it. Limits in tokens and US dollars; null is none.

    `used` is null of a budget that every end user has for themselves. A `locked` one is the operator's:
    it can be read, and not changed.
    """

    budget_id: uuid.UUID
    subject: Subject
    agent_id: uuid.UUID | None
    end_user: str | None
    period: Period
    limit_tokens: int | None
    limit_cost: str | None
    locked: bool
    used: BudgetUsed | None
    created_at: datetime.datetime
    updated_at: datetime.datetime


class BudgetCreate(BaseModel):
    """The body of a create. Days and months are UTC's; a total counts from now on.

    An end user's budget is for each of them, or for the one that is named; of one agent, or of all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=at_least_one(*LIMITS))

    subject: Subject
    agent_id: uuid.UUID | None = None
    end_user: EndUser | None = None
    period: Period
    limit_tokens: Tokens | None = None
    limit_cost: Dollars | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.subject == "agent" and self.agent_id is None) or (
            self.subject == "tenant" and self.agent_id is not None
        ):
            raise PydanticCustomError("agent_id", "agent_id: needed for an agent, and none for a tenant")
        if self.subject != "end_user" and self.end_user is not None:
            raise PydanticCustomError("end_user", "end_user: only of an end user's budget")
        if self.limit_tokens is None and self.limit_cost is None:
            raise PydanticCustomError("limit", "limit_tokens or limit_cost")
        return self


class BudgetUpdate(BaseModel):
    """The body of a change: what is absent stays, null is no limit. One of the two is needed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit_tokens: Tokens | None = None
    limit_cost: Dollars | None = None


class BudgetCreateAction(BudgetCreate, Action[BudgetResource]):
    """Bound what the tenant, an agent or an end user may use; what its present day or month has seen counts.

    `by_operator`: the platform's own people ask, who alone may lock a budget.
    """

    verb = "budget.create"

    locked: bool = False
    by_operator: bool = False


class BudgetUpdateAction(BudgetUpdate, Action[BudgetResource]):
    """Change a budget's limits, from the next call on."""

    verb = "budget.update"

    budget_id: uuid.UUID
    locked: bool | None = None
    by_operator: bool = False


class BudgetDeleteAction(Action[None]):
    """Lift a budget."""

    verb = "budget.delete"

    budget_id: uuid.UUID
    by_operator: bool = False
