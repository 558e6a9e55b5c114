"""The usage report over HTTP."""

from __future__ import annotations

import csv
import datetime
import io
import uuid
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client

from core.models import Tenant, UsageRecord
from tests.factories import make_key, make_task, make_tenant

DAY = datetime.date(2026, 11, 20)
AGENTS = sorted((uuid.uuid4(), uuid.uuid4()))


def record(tenant: Tenant, day: int = 20, **fields: Any) -> UsageRecord:
    made: UsageRecord = UsageRecord.unscoped.create(
        **{
            "tenant": tenant,
            "task": make_task(tenant),
            "attempt": 1,
            "call": 1,
            "agent_id": AGENTS[0],
            "session_id": "s",
            "end_user": "ada",
            "provider": "openai",
            "model": "gpt",
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "cached_tokens": 2,
            "accuracy": "exact",
            "cost": Decimal("0.000000000001"),
            **fields,
        }
    )
    moment = datetime.datetime(2026, 11, day, 23, 59, 59, 999_999, datetime.UTC)
    UsageRecord.unscoped.filter(pk=made.pk).update(created_at=moment)
    return made


def get(tenant: Tenant, scopes: tuple[str, ...] = ("usage:read",), accept: str = "*/*", **query: Any) -> Any:
    _, key = make_key(tenant, scopes)
    headers = {"authorization": f"Bearer {key}", "accept": accept}
    return Client(headers=headers).get("/api/v1/usage", {"to": DAY, **query})


def test_calls_are_summed_up_by_day_agent_and_model(tenant: Tenant) -> None:
    record(tenant, cost=Decimal("0.5"))
    record(tenant, cost=None, accuracy="unknown", prompt_tokens=0, completion_tokens=0, cached_tokens=0)
    record(tenant, cost=None, accuracy="estimated")
    record(tenant, agent_id=AGENTS[1], cost=Decimal("1.25"))
    record(tenant, day=19, model="other")
    record(make_tenant())
    lines = get(tenant).json()["items"]
    assert [(line["day"], line["agent_id"], line["model"]) for line in lines] == [
        ("2026-11-19", str(AGENTS[0]), "other"),
        ("2026-11-20", str(AGENTS[0]), "gpt"),
        ("2026-11-20", str(AGENTS[1]), "gpt"),
    ]
    assert lines[1] == {
        "day": "2026-11-20",
        "agent_id": str(AGENTS[0]),
        "provider": "openai",
        "model": "gpt",
        "calls": 3,
        "exact": 1,
        "estimated": 1,
        "unknown": 1,
        "unpriced": 1,
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "cached_tokens": 4,
        "cost": "0.5",
    }
    assert lines[0]["cost"] == "0.000000000001"


def test_without_any_price_the_cost_is_null_and_not_nothing(tenant: Tenant) -> None:
    record(tenant, cost=None)
    [line] = get(tenant, by="day").json()["items"]
    assert (line["cost"], line["unpriced"], line["calls"]) == (None, 1, 1)


@pytest.mark.parametrize("by", ["day", "end_user", "end_user,day", "model,agent", "day,agent,model,end_user"])
def test_pages_hold_every_line_once(tenant: Tenant, by: str) -> None:
    for number in range(12):
        record(
            tenant,
            day=10 + number % 5,
            agent_id=AGENTS[number % 2],
            model=f"m{number % 3}",
            end_user=["ada", "", "Zoë", "b"][number % 4],
        )
    whole = get(tenant, by=by).json()
    assert whole["next"] is None
    page = get(tenant, by=by, limit=2).json()
    found, pages = page["items"], 1
    while cursor := page["next"]:
        page = get(tenant, by=by, limit=2, cursor=cursor).json()
        found, pages = found + page["items"], pages + 1
    assert found == whole["items"]
    assert sum(line["calls"] for line in found) == 12
    assert pages == -(-len(found) // 2)


def test_days_are_those_of_utc_and_both_ends_count(tenant: Tenant) -> None:
    for day in (17, 18, 19, 20):
        record(tenant, day=day)
    query = {"from": "2026-11-18", "to": "2026-11-19", "by": "day"}
    assert [line["day"] for line in get(tenant, **query).json()["items"]] == ["2026-11-18", "2026-11-19"]


@pytest.mark.parametrize("how", [{"accept": "text/csv"}, {"format": "csv"}], ids=str)
def test_a_table_has_no_formulas(tenant: Tenant, how: dict[str, str]) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", 'ada, "the" first', "＝1"]
    for name in names:
        record(tenant, end_user=name)
    answer = get(tenant, by="end_user", **how)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert 'filename="usage-2026-10-22-2026-11-20.csv"' in answer.headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
    assert {row["end_user"] for row in rows} == {
        name if name.startswith("ada") else f"'{name}" for name in names
    }
    assert {row["cost"] for row in rows} == {"0.000000000001"}


@pytest.mark.parametrize(
    "query",
    [
        {"from": "yesterday"},
        {"from": "2026-11-21"},
        {"from": "2020-01-01"},
        {"to": "9999-12-31"},
        {"by": "tenant"},
        {"by": "day,day"},
        {"by": ""},
        {"limit": "0"},
        {"cursor": "x"},
        {"cursor": "é"},
        {"cursor": "WyIxIl0"},
        {"cursor": "WyIyMDI2LTExLTIwIiwieCIsIm8iLCJtIl0"},
        {"cursor": "eyJhIjoxfQ"},
        {"by": "day", "cursor": "WzFd"},
        {"by": "end_user", "cursor": "WyJcdTAwMDAiXQ"},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(tenant: Tenant, query: dict[str, str]) -> None:
    answer = get(tenant, **query)
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "ValidationFailed")


def test_a_refusal_is_json_also_where_a_table_was_asked_for(tenant: Tenant) -> None:
    answer = get(tenant, accept="text/csv", by="tenant")
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/json")


def test_it_needs_the_right_to_read_usage(tenant: Tenant) -> None:
    assert get(tenant, ("usage:write", "agents:read")).status_code == 403
    assert Client().get("/api/v1/usage", headers={"accept": "text/csv"}).json()["error"]["type"] == (
        "AuthenticationRequired"
    )
