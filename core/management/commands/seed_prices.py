"""The price list that comes with the platform: genai-prices, which its keepers renew."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from typing import Any

from django.core.management.base import BaseCommand
from django.db import connection, transaction
from django.db.models.functions import Now
from django.utils import timezone
from genai_prices import data, types

from core.audit import record
from core.ids import is_slug
from core.models import ModelPrice
from core.models.price import PRICE_DIGITS
from core.tenancy import across_tenants

LIST = "genai-prices"
EVER = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_LOCK = 0x70726963  # of PostgreSQL's advisory locks: two of these do not run at once

Key = tuple[str, str, int]  # provider, model, from prompt tokens


@dataclass(frozen=True, slots=True)
class Listed:
    """A price of the list, from a moment on."""

    valid_from: datetime.datetime
    prompt: Decimal
    completion: Decimal
    cached: Decimal | None

    def is_that_of(self, row: ModelPrice) -> bool:
        return (self.prompt, self.completion, self.cached) == (row.prompt, row.completion, row.cached)


class Command(BaseCommand):
    help = "Write the prices of the kept list into the database; prices that people have set stay."

    @across_tenants()
    def handle(self, *args: Any, **options: Any) -> None:
        added, withdrawn = self._seed()
        if added or withdrawn:
            self.stdout.write(f"{added} prices added, {withdrawn} withdrawn")

    @transaction.atomic
    def _seed(self) -> tuple[int, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        rows = list(ModelPrice.unscoped.filter(tenant=None, withdrawn_at=None))
        theirs = {
            (row.provider, row.model.lower()) for row in rows if row.source == ModelPrice.Source.CONSOLE
        }
        known: dict[Key, list[ModelPrice]] = {}
        for row in rows:
            known.setdefault((row.provider, row.model, row.from_prompt_tokens), []).append(row)
        now = timezone.now()
        listed = price_list()
        models = {key[:2] for key in listed}
        new = [
            _row(key, price)
            for key, prices in listed.items()
            if key[:2] not in theirs
            for price in _missing(prices, known.get(key, []), now)
        ]
        # A price for long prompts that the list does not have any more: the model's other one holds.
        gone = [row.pk for key, old in known.items() if key not in listed for row in old if key[:2] in models]
        ModelPrice.unscoped.bulk_create(new)
        ModelPrice.unscoped.filter(pk__in=gone, source=ModelPrice.Source.LIST).update(withdrawn_at=Now())
        if new or gone:
            after = {"version": version(LIST), "added": len(new), "withdrawn": len(gone)}
            record("price.seed", "price_list", LIST, tenant_id=None, before={}, after=after)
        return len(new), len(gone)


def _missing(prices: list[Listed], known: list[ModelPrice], now: datetime.datetime) -> Iterator[Listed]:
    """What the database lacks of a model's prices. What is in force is never changed backwards."""
    if not known:
        yield from prices
        return
    latest = max(known, key=lambda row: (row.valid_from, row.pk))
    newest = prices[-1]
    if not newest.is_that_of(latest):
        moment = newest.valid_from if newest.valid_from > latest.valid_from else now
        yield Listed(moment, newest.prompt, newest.completion, newest.cached)


def _row(key: Key, price: Listed) -> ModelPrice:
    provider, model, from_prompt_tokens = key
    return ModelPrice(
        provider=provider,
        model=model,
        from_prompt_tokens=from_prompt_tokens,
        prompt=price.prompt,
        completion=price.completion,
        cached=price.cached,
        valid_from=price.valid_from,
        source=ModelPrice.Source.LIST,
    )


def price_list() -> dict[Key, list[Listed]]:
    """The whole list, the oldest price of a model first; and our own provider, which costs nothing.

    What cannot be said in a row is left out: prices by the hour, names by a regular expression, and
    what is not paid by tokens.
    """
    nothing = Listed(EVER, Decimal(0), Decimal(0), None)
    found: dict[Key, list[Listed]] = {("scripted", "*", 0): [nothing]}
    for provider in data.providers:
        if not is_slug(provider.id):
            continue  # nobody can register a provider of this name
        for model in provider.models:
            for name in dict.fromkeys([model.id.lower(), *_names(model.match)]):
                for least, prices in _prices(model.prices).items():
                    found.setdefault((provider.id, name, least), prices)
    return found


def _names(match: Any) -> Iterator[str]:
    """The names and patterns by which a model is known."""
    if isinstance(match, types.ClauseEquals):
        yield match.equals.lower()
    elif isinstance(match, types.ClauseStartsWith):
        yield f"{match.starts_with.lower()}*"
    elif isinstance(match, types.ClauseEndsWith):
        yield f"*{match.ends_with.lower()}"
    elif isinstance(match, types.ClauseContains):
        yield f"*{match.contains.lower()}*"
    elif isinstance(match, types.ClauseOr):
        for part in match.or_:
            yield from _names(part)


def _prices(prices: Any) -> dict[int, list[Listed]]:
    """By the least tokens of the prompt, the oldest first."""
    found: dict[int, list[Listed]] = {}
    conditional = (
        prices if isinstance(prices, list) else [types.ConditionalPrice(constraint=None, prices=prices)]
    )
    for item in conditional:
        if isinstance(item.constraint, types.StartDateConstraint):
            day = item.constraint.start_date
            begin = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
        elif item.constraint is None:
            begin = EVER
        else:
            return {}
        for least in _steps(item.prices):
            prompt = _at(item.prices.input_mtok, least)
            completion = _at(item.prices.output_mtok, least)
            if prompt is not None and completion is not None:
                cached = _at(item.prices.cache_read_mtok, least)
                found.setdefault(least, []).append(Listed(begin, prompt, completion, cached))
    return {least: sorted(listed, key=lambda price: price.valid_from) for least, listed in found.items()}


def _steps(prices: Any) -> list[int]:
    tiers = [
        tier for price in (prices.input_mtok, prices.output_mtok) for tier in getattr(price, "tiers", ())
    ]
    # The list says after how many tokens a price begins, a row with how many.
    return sorted({0, *(tier.start + 1 for tier in tiers)})


def _at(price: Any, tokens: int) -> Decimal | None:
    """The price of a prompt with so many tokens."""
    if isinstance(price, types.TieredPrices):
        price = next((tier.price for tier in reversed(price.tiers) if tokens > tier.start), price.base)
    return None if price is None else round(price, PRICE_DIGITS)
