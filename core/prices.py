"""What calls cost: the prices of the database, as this process knows them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from django.db.models.functions import Now

from core.cache import TimedCache
from core.models import ModelPrice
from core.selectors import tenant_limits
from core.tenancy import across_tenants

MILLION = 1_000_000
EVERYBODYS = ""  # in the place of a tenant


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens. `row_id` is the ModelPrice's."""

    row_id: int
    prompt: Decimal
    completion: Decimal
    cached: Decimal

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Decimal:
        """US dollars, exactly. The cached tokens are among those of the prompt."""
        prompt = self.prompt * (prompt_tokens - cached_tokens) + self.cached * cached_tokens
        return (prompt + self.completion * completion_tokens).scaleb(-6)


class PriceList:
    """The prices of one provider, in the order in which they are asked for."""

    def __init__(self, rows: Iterable[ModelPrice]) -> None:
        # Names before patterns, long ones before short ones; of one model the longest prompts first,
        # and the newest row.
        self._rows = sorted(
            rows,
            key=lambda row: (
                "*" in row.model,
                -len(row.model),
                row.model,
                -row.from_prompt_tokens,
                -row.valid_from.timestamp(),
                -row.pk,
            ),
        )
        self._known: dict[str, list[tuple[int, Price]]] = {}

    def find(self, model: str, prompt_tokens: int) -> Price | None:
        found = self._known.get(model)
        if found is None:
            found = self._known[model] = self._of(model)
        return next((price for least, price in found if prompt_tokens >= least), None)

    def _of(self, model: str) -> list[tuple[int, Price]]:
        """(least tokens of the prompt, price) by the first name or pattern that is the model's."""
        first = next((row.model for row in self._rows if matches(row.model, model)), None)
        return [(row.from_prompt_tokens, _price(row)) for row in self._rows if row.model == first]


# A change of price is in force within half a minute in every process.
_lists: TimedCache[tuple[str, str], PriceList] = TimedCache(seconds=30.0)


def price_of(tenant_id: str, provider: str, model: str, prompt_tokens: int = 0) -> Price | None:
    """What the model costs the tenant now, or None when nobody knows."""
    own = None
    if tenant_limits(tenant_id).has_prices:
        own = _list(tenant_id, provider).find(model, prompt_tokens)
    return own or _list(EVERYBODYS, provider).find(model, prompt_tokens)


def matches(pattern: str, model: str) -> bool:
    """Whether the name or pattern is the model's, in upper or lower case."""
    parts = (re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(".*".join(parts), model, re.IGNORECASE | re.DOTALL) is not None


def _list(tenant_id: str, provider: str) -> PriceList:
    found = _lists.get((tenant_id, provider), _load)
    assert found is not None
    return found


# What is kept for everybody is read as nobody: whose scope asks first must not matter.
@across_tenants()
def _load(key: tuple[str, str]) -> PriceList:
    tenant_id, provider = key
    rows = ModelPrice.unscoped.filter(provider=provider, withdrawn_at=None, valid_from__lte=Now())
    return PriceList(rows.filter(tenant_id=tenant_id or None))


def _price(row: ModelPrice) -> Price:
    cached = row.prompt if row.cached is None else row.cached
    return Price(row.pk, row.prompt, row.completion, cached)
