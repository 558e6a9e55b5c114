"""Prices, budgets and the usage report in the console."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from core.admin import usage_report
from core.models import AuditEntry, Budget, BudgetUse, ModelPrice, Tenant, UsageRecord
from core.models.membership import Role
from tests.factories import make_agent, make_person, make_task, make_tenant

ADD_PRICE = "admin:core_modelprice_add"
PRICE: dict[str, Any] = {
    "provider": "openai",
    "model": "gpt-*",
    "tenant": "",
    "from_prompt_tokens": "0",
    "prompt": "1.5",
    "completion": "6",
    "cached": "",
    "valid_from_0": "",
    "valid_from_1": "",
}


def record(tenant: Tenant, **fields: Any) -> UsageRecord:
    made: UsageRecord = UsageRecord.unscoped.create(
        **{
            "tenant": tenant,
            "task": make_task(tenant),
            "attempt": 1,
            "call": 1,
            "agent_id": make_agent(tenant).pk,
            "session_id": "s",
            "provider": "openai",
            "model": "gpt",
            "prompt_tokens": 1_000,
            "completion_tokens": 20,
            "accuracy": "exact",
            "cost": Decimal("0.25"),
            **fields,
        }
    )
    return made


def test_a_price_is_set_changed_and_withdrawn(admin_client: Client, db: None) -> None:
    assert admin_client.post(reverse(ADD_PRICE), PRICE).status_code == 302
    first = ModelPrice.unscoped.get()
    assert (first.prompt, first.completion, first.cached, first.source) == (
        Decimal("1.5"),
        6,
        None,
        "console",
    )
    page = reverse("admin:core_modelprice_change", args=[first.pk])
    assert admin_client.get(page).status_code == 200
    changed = {name: value for name, value in PRICE.items() if name in ("completion", "cached")}
    changed |= {"prompt": "2", "valid_from_0": "2030-01-01", "valid_from_1": "00:00:00"}
    assert admin_client.post(page, changed).status_code == 302
    new = ModelPrice.unscoped.latest("pk")
    assert (new.model, new.prompt, new.valid_from.year) == ("gpt-*", 2, 2030)
    first.refresh_from_db()
    assert (first.prompt, first.withdrawn_at) == (Decimal("1.5"), None)
    gone = reverse("admin:core_modelprice_delete", args=[new.pk])
    assert admin_client.post(gone, {"post": "yes"}).status_code == 302
    new.refresh_from_db()
    assert new.withdrawn_at is not None
    entries = AuditEntry.unscoped.filter(object_type="price").order_by("pk")
    assert list(entries.values_list("verb", "actor", "tenant")) == [
        ("price.set", "user:admin", None),
        ("price.set", "user:admin", None),
        ("price.withdraw", "user:admin", None),
    ]
    second = entries[1]
    assert (second.before["prompt"], second.after["prompt"]) == ("1.500000", "2")


@pytest.mark.parametrize(
    "fields", [{"prompt": "-1"}, {"prompt": ""}, {"model": "a b"}, {"provider": ""}], ids=str
)
def test_a_price_must_make_sense(admin_client: Client, db: None, fields: dict[str, str]) -> None:
    answer = admin_client.post(reverse(ADD_PRICE), PRICE | fields)
    assert answer.status_code == 200
    assert "errornote" in answer.content.decode() or answer.context["errors"]
    assert not ModelPrice.unscoped.exists()


def test_prices_are_the_operators(client: Client, tenant: Tenant) -> None:
    client.force_login(make_person((tenant, Role.OWNER)))
    assert client.post(reverse(ADD_PRICE), PRICE | {"tenant": tenant.pk}).status_code == 403
    assert not ModelPrice.unscoped.exists()


def budget_form(**fields: Any) -> dict[str, Any]:
    form = {"subject": "tenant", "period": "day", "agent_id": "", "end_user": ""}
    return form | {"limit_tokens": "100", "limit_cost": ""} | fields


USES = {"uses-TOTAL_FORMS": "0", "uses-INITIAL_FORMS": "0"}


def test_a_budget_is_made_changed_and_lifted(admin_client: Client, tenant: Tenant) -> None:
    add = reverse("admin:core_budget_add")
    answer = admin_client.post(add, budget_form(tenant=tenant.pk, locked="on"))
    assert answer.status_code == 302
    budget = Budget.unscoped.get()
    assert (budget.limit_tokens, budget.locked) == (100, True)
    BudgetUse.unscoped.create(
        tenant=tenant,
        budget=budget,
        begins_at=timezone.now(),
        spent_tokens=77,
        spent_cost=Decimal("0.000123"),
    )
    page = reverse("admin:core_budget_change", args=[budget.pk])
    shown = admin_client.get(page).content.decode()
    assert "77" in shown
    assert "0.000123" in shown
    answer = admin_client.post(page, {"limit_tokens": "", "limit_cost": "2.5", **USES})
    assert answer.status_code == 302
    budget.refresh_from_db()
    assert (budget.limit_tokens, budget.limit_cost, budget.locked) == (None, Decimal("2.5"), False)
    again = admin_client.post(add, budget_form(tenant=tenant.pk))
    assert again.status_code == 200
    assert "already exists" in str(again.context["errors"])
    nothing = admin_client.post(page, {"limit_tokens": "", "limit_cost": "", **USES})
    assert nothing.status_code == 200
    gone = reverse("admin:core_budget_delete", args=[budget.pk])
    assert admin_client.post(gone, {"post": "yes"}).status_code == 302
    assert not Budget.unscoped.exists()


def test_owners_bound_their_tenant_and_leave_the_operators_budget(client: Client, tenant: Tenant) -> None:
    client.force_login(make_person((tenant, Role.OWNER)))
    add = reverse("admin:core_budget_add")
    answer = client.post(add, budget_form(tenant=tenant.pk, locked="on"))
    assert answer.status_code == 302
    own = Budget.unscoped.get()
    assert own.locked is False
    foreign = make_tenant()
    assert client.post(add, budget_form(tenant=foreign.pk)).status_code == 200
    locked = Budget.unscoped.create(
        tenant=tenant, subject="tenant", period="month", limit_tokens=5, locked=True
    )
    page = reverse("admin:core_budget_change", args=[locked.pk])
    answer = client.post(page, {"limit_tokens": "10", "limit_cost": "", **USES})
    assert "Only the platform&#x27;s own people may change this budget." in answer.content.decode()
    gone = reverse("admin:core_budget_delete", args=[locked.pk])
    assert client.post(gone, {"post": "yes"}).status_code == 403
    locked.refresh_from_db()
    assert locked.limit_tokens == 5
    assert Budget.unscoped.count() == 2


def test_the_report_shows_days_agents_and_models(admin_client: Client, tenant: Tenant) -> None:
    row = record(tenant)
    record(tenant, model="unpriced", cost=None, agent_id=row.agent_id, end_user="=1+1")
    record(make_tenant(), model="<script>")
    page = admin_client.get(reverse("usage:report"))
    text = page.content.decode()
    assert [total for _, total in page.context["totals"]] == ["3", "3,000", "60", "US$ 0.500", "0", "0", "1"]
    assert "<script>&" not in text
    assert "openai / &lt;script&gt;" in text
    one = admin_client.get(reverse("usage:report"), {"tenant": tenant.pk, "days": "7"})
    tokens, cost = (json.loads(chart["data"]) for chart in one.context["by_day"])
    assert [len(chart["labels"]) for chart in (tokens, cost)] == [7, 7]
    assert [values["data"][-1] for values in tokens["datasets"]] == [2_000, 40]
    assert cost["datasets"][0]["data"][-1] == 0.25
    agents, models = (table for _, _, _, table in one.context["parts"])
    assert [(line["name"], line["cost"]) for line in agents] == [("Test agent", "≥ US$ 0.250")]
    assert [line["name"] for line in models] == ["openai / gpt", "openai / unpriced"]
    table = admin_client.get(reverse("usage:report"), {"tenant": tenant.pk, "format": "csv"})
    rows = list(csv.DictReader(io.StringIO(table.content.decode())))
    assert sorted(row["end_user"] for row in rows) == ["", "'=1+1"]


def test_a_table_that_would_be_too_long_is_not_cut_in_silence(
    admin_client: Client, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_report, "MOST_LINES", 1)
    for _ in range(2):
        record(tenant)
    answer = admin_client.get(reverse("usage:report"), {"format": "csv"})
    assert answer.status_code == 302
    assert "too long" in admin_client.get(answer["location"]).content.decode()


def test_people_of_a_tenant_see_its_money_only(client: Client, tenant: Tenant) -> None:
    record(tenant)
    foreign = make_tenant()
    record(foreign, model="secret-model")
    client.force_login(make_person((tenant, Role.VIEWER)))
    for query in ({}, {"tenant": foreign.pk}):
        page = client.get(reverse("usage:report"), query)
        assert page.status_code == 200
        assert "secret-model" not in page.content.decode()
        assert foreign.pk not in page.context["tenants"]
    client.force_login(make_person())
    assert client.get(reverse("usage:report")).status_code == 403


def test_without_any_use_it_says_so(admin_client: Client, db: None) -> None:
    assert "Nothing was used in these days." in admin_client.get(reverse("usage:report")).content.decode()
