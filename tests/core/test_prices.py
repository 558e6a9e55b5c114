"""Prices: which one is a call's, how they change, and the list that comes with the platform."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError
from django.utils import timezone
from genai_prices import data, types

from core import prices, selectors
from core.actions.bus import execute
from core.actions.prices import PriceSetAction, PriceWithdrawAction
from core.errors import NotFound
from core.management.commands import seed_prices
from core.models import AuditEntry, ModelPrice, Tenant
from core.prices import matches, price_of
from core.tenancy import across_tenants, tenant_scope

HOUR = datetime.timedelta(hours=1)


def priced(model: str, prompt: int, tenant: Tenant | None = None, **fields: Any) -> int:
    with across_tenants():
        action = PriceSetAction(
            tenant_id=tenant.pk if tenant else None,
            provider="vendor",
            model=model,
            prompt=Decimal(prompt),
            completion=Decimal(10),
            **fields,
        )
        row_id = execute(action).row_id
    prices._lists.clear()
    selectors._limits.clear()
    return row_id


def found(tenant: Tenant, model: str, prompt_tokens: int = 0) -> Decimal | None:
    with tenant_scope(tenant.pk):
        price = price_of(tenant.pk, "vendor", model, prompt_tokens)
    return price.prompt if price is not None else None


@pytest.mark.parametrize(
    ("pattern", "model", "fits"),
    [
        ("gpt-5", "gpt-5", True),
        ("gpt-5", "GPT-5", True),
        ("gpt-5", "gpt-5.1", False),
        ("gpt-5", "gpt-5\n", False),
        ("gpt.5", "gpt-5", False),
        ("gpt-*", "gpt-5", True),
        ("*-mini", "gpt-5-mini", True),
        ("*llama*", "meta/llama-3", True),
        ("*", "anything", True),
        ("[a]*", "a", False),
    ],
)
def test_patterns(pattern: str, model: str, fits: bool) -> None:
    assert matches(pattern, model) is fits


def test_names_go_before_patterns_and_ones_own_before_everybodys(tenant: Tenant) -> None:
    priced("*", 1)
    priced("gpt-*", 2)
    priced("gpt-4*", 3)
    priced("gpt-4", 4)
    assert [found(tenant, model) for model in ("o3", "gpt-5", "gpt-4.1", "gpt-4")] == [1, 2, 3, 4]
    priced("gpt-*", 5, tenant)
    assert [found(tenant, model) for model in ("o3", "gpt-5", "gpt-4")] == [1, 5, 5]


def test_another_tenants_price_is_its_own(tenant: Tenant) -> None:
    from_elsewhere = Tenant.objects.create(id="elsewhere", name="E", tier=tenant.tier)
    priced("gpt", 1, from_elsewhere)
    assert (found(tenant, "gpt"), found(from_elsewhere, "gpt")) == (None, 1)


def test_a_price_holds_from_its_moment_on(tenant: Tenant) -> None:
    now = timezone.now()
    priced("gpt", 1, valid_from=now - 2 * HOUR)
    priced("gpt", 2, valid_from=now - HOUR)
    priced("gpt", 3, valid_from=now + HOUR)
    assert found(tenant, "gpt") == 2


def test_long_prompts_have_a_price_of_their_own(tenant: Tenant) -> None:
    priced("gpt", 1)
    priced("gpt", 2, from_prompt_tokens=200_001)
    assert [found(tenant, "gpt", tokens) for tokens in (0, 200_000, 200_001)] == [1, 1, 2]


def test_what_is_withdrawn_has_never_been(tenant: Tenant) -> None:
    priced("gpt", 1)
    row_id = priced("gpt", 2)
    with across_tenants():
        for _ in range(2):
            execute(PriceWithdrawAction(row_id=row_id))
    prices._lists.clear()
    assert found(tenant, "gpt") == 1
    entries = AuditEntry.unscoped.order_by("pk").values_list("verb", "tenant")
    assert list(entries) == [("price.set", None), ("price.set", None), ("price.withdraw", None)]


def test_what_is_not_there_cannot_be_withdrawn(tenant: Tenant) -> None:
    with across_tenants(), pytest.raises(NotFound):
        execute(PriceWithdrawAction(row_id=10**9))


def test_costs_are_exact() -> None:
    price = prices.Price(1, Decimal("0.000001"), Decimal("0.15"), Decimal("0.0000005"))
    assert price.cost(3, 7, 1) == Decimal("0.0000010500025")


def test_no_price_is_negative(tenant: Tenant) -> None:
    with pytest.raises(ValueError, match="greater than or equal"):
        priced("gpt", -1)
    with pytest.raises(IntegrityError):
        ModelPrice.unscoped.create(
            provider="p", model="m", prompt=-1, completion=0, valid_from=timezone.now(), source="list"
        )


# --- the list --------------------------------------------------------------------------------------


def seed() -> None:
    call_command("seed_prices")
    prices._lists.clear()


def test_the_list_is_written_once(tenant: Tenant) -> None:
    seed()
    count = ModelPrice.unscoped.count()
    assert count > 1_000
    with tenant_scope(tenant.pk):
        mini = price_of(tenant.pk, "openai", "gpt-4.1-mini-2025-04-14")
        assert mini is not None
        assert (mini.prompt, mini.completion, mini.cached) == (
            Decimal("0.4"),
            Decimal("1.6"),
            Decimal("0.1"),
        )
        assert price_of(tenant.pk, "groq", "llama-3.3-70b-versatile") is not None
        assert price_of(tenant.pk, "openai", "no-such-model") is None
        free = price_of(tenant.pk, "scripted", "demo")
        assert free is not None
        assert free.cost(100, 100) == 0
    seed()
    assert ModelPrice.unscoped.count() == count
    assert AuditEntry.unscoped.filter(verb="price.seed").count() == 1


def test_our_rows_cost_what_the_list_says(tenant: Tenant) -> None:
    """Of every model with a name: the same call, priced by us and by the list's own calculation."""
    seed()
    compared = 0
    for provider in data.providers:
        if provider.id not in ("openai", "groq", "anthropic", "google", "mistral"):
            continue
        for model in provider.models:
            names = list(seed_prices._names(model.match))
            if not seed_prices._prices(model.prices) or model.id.lower() not in names:
                continue
            if provider.find_model(model.id) is not model:
                continue
            for prompt in (1_000, 150_000, 300_000, 1_100_000):
                usage = types.Usage(input_tokens=prompt, output_tokens=500, cache_read_tokens=100)
                theirs = model.calc_price(usage, provider).total_price
                with tenant_scope(tenant.pk):
                    ours = price_of(tenant.pk, provider.id, model.id, prompt)
                assert ours is not None, model.id
                if ours.cached != ours.prompt:
                    assert ours.cost(prompt, 500, 100) == theirs, (model.id, prompt)
                    compared += 1
    assert compared > 100


def test_a_list_that_has_changed_changes_what_is_to_come(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {
        ("vendor", "a", 0): [seed_prices.Listed(seed_prices.EVER, Decimal(1), Decimal(2), None)],
        ("vendor", "a", 1_001): [seed_prices.Listed(seed_prices.EVER, Decimal(3), Decimal(4), None)],
        ("vendor", "b", 0): [seed_prices.Listed(seed_prices.EVER, Decimal(1), Decimal(2), None)],
        ("vendor", "old", 0): [seed_prices.Listed(seed_prices.EVER, Decimal(1), Decimal(2), None)],
    }
    monkeypatch.setattr(seed_prices, "price_list", lambda: listed)
    seed()
    set_by_hand = priced("b", 7)
    del listed[("vendor", "a", 1_001)], listed[("vendor", "old", 0)]
    dearer = [seed_prices.Listed(seed_prices.EVER, Decimal(5), Decimal(6), Decimal(1))]
    listed[("vendor", "a", 0)] = listed[("vendor", "b", 0)] = dearer
    begun = timezone.now()
    seed()
    seed()
    assert [found(tenant, "a"), found(tenant, "a", 2_000), found(tenant, "old")] == [5, 5, 1]
    new = ModelPrice.unscoped.get(model="a", prompt=5)
    assert new.valid_from >= begun
    assert ModelPrice.unscoped.filter(model="a", withdrawn_at=None).count() == 2
    assert ModelPrice.unscoped.filter(model="b").latest("pk").pk == set_by_hand
