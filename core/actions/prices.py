"""The verbs of prices: the platform's own people use them, in the console."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Annotated

from pydantic import Field, StringConstraints

from core.actions.base import Action, Result, TenantId

Dollars = Annotated[Decimal, Field(ge=0, max_digits=16, decimal_places=6, allow_inf_nan=False)]


class SetPrice(Result):
    row_id: int


class PriceSetAction(Action[SetPrice]):
    """Say what a model costs from a moment on, or from now on; for all tenants, or for one.

    Prices are US dollars per million tokens. See `core.models.ModelPrice`.
    """

    verb = "price.set"

    tenant_id: TenantId | None = None
    provider: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    model: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
    from_prompt_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    prompt: Dollars
    completion: Dollars
    cached: Dollars | None = None
    valid_from: datetime.datetime | None = None


class PriceWithdrawAction(Action[None]):
    """Make a price as if it had never been: from now on. Calls that were made by it keep their cost."""

    verb = "price.withdraw"

    row_id: int
