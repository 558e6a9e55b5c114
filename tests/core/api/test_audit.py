"""The record of changes over HTTP."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from core.audit import Origin, asked_by, record
from core.models import AuditEntry, Tenant
from core.models.audit import AuditSource
from tests.factories import make_key, make_tenant

AUDIT = "/api/v1/audit"


def write(tenant: Tenant | None, object_id: str = "7", **fields: Any) -> AuditEntry:
    fields = {"object_type": "thing", "actor": "test", "before": {}, "after": {"a": 1}, **fields}
    entry = record("thing.change", object_id=object_id, tenant_id=tenant.pk if tenant else None, **fields)
    assert entry is not None
    return entry


def read(client: Client, tenant: Tenant, query: str = "", *scopes: str) -> Any:
    _, text = make_key(tenant, scopes or ("agents:read",))
    return client.get(f"{AUDIT}{query}", headers={"Authorization": f"Bearer {text}"})


def ids(response: Any) -> list[int]:
    assert response.status_code == 200, response.content
    return [item["id"] for item in response.json()["items"]]


def test_ones_own_changes_are_listed_newest_first(client: Client, tenant: Tenant) -> None:
    write(make_tenant())
    write(None)
    first, second = write(tenant), write(tenant, before={"a": 1}, after={"a": 2})
    response = read(client, tenant)
    assert ids(response) == [second.pk, first.pk]
    item = response.json()["items"][0]
    assert datetime.datetime.fromisoformat(item.pop("created_at")).tzinfo is not None
    assert item == {
        "id": second.pk,
        "verb": "thing.change",
        "object_type": "thing",
        "object_id": "7",
        "actor": "test",
        "source": "command",
        "request_id": "",
        "ip": None,
        "before": {"a": 1},
        "after": {"a": 2},
    }


def test_pages(client: Client, tenant: Tenant) -> None:
    entries = [write(tenant) for _ in range(5)]
    listed, query = [], "?limit=2"
    while True:
        response = read(client, tenant, query)
        listed += ids(response)
        following = response.json()["next"]
        if following is None:
            break
        query = f"?limit=2&cursor={following}"
    assert listed == [entry.pk for entry in reversed(entries)]


def test_filters(client: Client, tenant: Tenant) -> None:
    one, two = write(tenant, "one"), write(tenant, "two", actor="key:x", object_type="other")
    old = write(tenant, "one")
    AuditEntry.unscoped.filter(pk=old.pk).update(created_at=timezone.now() - datetime.timedelta(days=9))
    since = (timezone.now() - datetime.timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    for query, expected in (
        ("?object=one", [old, one]),
        ("?object=other", [two]),
        ("?object=nothing", []),
        ("?actor=key:x", [two]),
        (f"?since={since}", [two, one]),
        (f"?since={since}&object=one", [one]),
        ("?since=2100-01-01", []),
        ("?object=&actor=", [old, two, one]),
    ):
        assert ids(read(client, tenant, query)) == [entry.pk for entry in expected], query


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=x",
        "cursor=x",
        "cursor=0",
        "since=yesterday",
        "since=2026-13-01",
        "since=%00",
        "since=",
        "object=%00",
        "object=" + "x" * 161,
        "actor=%00",
    ],
)
def test_a_bad_question_is_named(client: Client, tenant: Tenant, query: str) -> None:
    response = read(client, tenant, f"?{query}")
    assert response.status_code == 422
    assert query.partition("=")[0] in response.json()["error"]["details"]


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_the_ends_of_time_are_no_error(client: Client, tenant: Tenant, since: str) -> None:
    assert read(client, tenant, "?since=" + since.replace("+", "%2B")).status_code in (200, 422)


def test_where_the_operators_people_sit_is_not_told(client: Client, tenant: Tenant) -> None:
    for source in (AuditSource.API, AuditSource.ADMIN):
        with asked_by(Origin(source, ip="203.0.113.7")):
            write(tenant)
    told = {item["source"]: item["ip"] for item in read(client, tenant).json()["items"]}
    assert told == {"api": "203.0.113.7", "admin": None}


def test_who_may(client: Client, tenant: Tenant) -> None:
    assert client.get(AUDIT).status_code == 401
    refused = read(client, tenant, "", "agents:write", "usage:read")
    assert refused.status_code == 403
    assert refused.json()["error"]["details"] == {"scope": "agents:read"}
