"""Who may see which figures, and what stays when a service is away."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.db import OperationalError
from django.db.models.functions import Now
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from core import health, metrics, valkey
from core.models import Notice, Tenant
from core.models.membership import Role
from orchestrator.views import metrics as views
from tests.factories import make_key, make_person, make_task, random_slug

SERVICE_TOKEN = "only-for-tests-service-token"
LONG_AGO = datetime.timedelta(minutes=5, seconds=1)


@pytest.fixture(autouse=True)
def own_sums(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = f"nooble:test:{random_slug()}"
    monkeypatch.setattr(metrics, "ROOT", root)
    monkeypatch.setattr(metrics, "_counted", {})
    metrics.ACCEPTED.add("agent.execute", tenant_id="acme")
    metrics.ACCEPTED.add("agent.execute", tenant_id="other")
    metrics.Flusher().flush()
    yield
    client = redis.Redis.from_url(settings.REDIS_URL)
    for key in client.scan_iter(f"{root}:*"):
        client.delete(key)


def scrape(client: Client, token: str | None = None, **headers: str) -> Any:
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return client.get("/metrics", headers=headers)


def figures(answer: Any) -> dict[str, dict[str, float]]:
    """By family, the samples by their labels' values."""
    assert answer.status_code == 200, answer.content
    assert answer["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        family.name: {"|".join(sample.labels.values()): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(answer.content.decode())
    }


@pytest.fixture
def dev(settings: Any) -> None:
    settings.NOOBLE_ENV = "dev"


def test_outside_dev_nobody_sees_anything(client: Client, db: None) -> None:
    answer = scrape(client)
    assert answer.status_code == 401
    assert b"nooble_" not in answer.content
    assert scrape(client, "wrong").status_code == 401


def test_without_a_token_set_services_are_refused(client: Client, db: None, settings: Any) -> None:
    settings.SERVICE_TOKEN = ""
    assert scrape(client, "").status_code == 401
    assert scrape(client, SERVICE_TOKEN).status_code == 401


def test_the_service_token_opens_everything(client: Client, db: None) -> None:
    found = figures(scrape(client, SERVICE_TOKEN))
    assert found["nooble_tasks_accepted"] == {"agent.execute": 2.0}
    assert found["nooble_tenant_tasks_accepted"] == {"agent.execute|acme": 1.0, "agent.execute|other": 1.0}
    assert found["nooble_scrape_parts_missing"] == {"": 0.0}
    assert {"nooble_sockets_open", "nooble_tasks_lost", "nooble_queue_messages"} <= set(found)
    assert {"nooble_deliveries_waiting", "nooble_notices_waiting", "nooble_tasks_open"} <= set(found)


@pytest.mark.usefixtures("dev")
def test_in_dev_anybody_sees_totals_and_no_tenant(client: Client, db: None) -> None:
    answer = scrape(client)
    assert figures(answer)["nooble_tasks_accepted"] == {"agent.execute": 2.0}
    assert b"acme" not in answer.content
    assert b"nooble_tenant" not in answer.content


def test_a_key_opens_its_tenants_own_figures(client: Client, tenant: Tenant) -> None:
    metrics.ACCEPTED.add("agent.execute", tenant_id=tenant.pk)
    metrics.Flusher().flush()
    _, key = make_key(tenant)
    answer = scrape(client, key)
    found = figures(answer)
    assert found["nooble_tenant_tasks_accepted"] == {f"agent.execute|{tenant.pk}": 1.0}
    assert "nooble_tasks_accepted" not in found
    assert b"acme" not in answer.content
    _, other = make_key(tenant, ("agents:read",))
    assert scrape(client, other).status_code == 403


@pytest.mark.parametrize(("is_superuser", "status"), [(True, 200), (False, 401)])
def test_of_people_superusers_see_everything(
    client: Client, db: None, is_superuser: bool, status: int
) -> None:
    person = User.objects.create_user("ada", is_staff=True, is_superuser=is_superuser)
    client.force_login(person, "django.contrib.auth.backends.ModelBackend")
    answer = scrape(client)
    assert answer.status_code == status
    assert (b"acme" in answer.content) is is_superuser


def test_a_person_of_a_tenant_sees_its_own_figures(client: Client, tenant: Tenant) -> None:
    metrics.ACCEPTED.add("agent.execute", tenant_id=tenant.pk)
    metrics.Flusher().flush()
    client.force_login(make_person((tenant, Role.VIEWER)), "django.contrib.auth.backends.ModelBackend")
    answer = scrape(client)
    assert figures(answer)["nooble_tenant_tasks_accepted"] == {f"agent.execute|{tenant.pk}": 1.0}
    assert b"acme" not in answer.content
    assert b"nooble_tasks_accepted" not in answer.content
    User.objects.update(is_staff=False)
    assert scrape(client).status_code == 401


def test_prometheus_asks_for_formats_of_its_own(client: Client, db: None) -> None:
    answer = scrape(client, SERVICE_TOKEN, accept="application/openmetrics-text;version=1.0.0")
    assert figures(answer)


def test_without_valkey_the_database_still_tells(
    client: Client, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(valkey, "client", away)
    found = figures(scrape(client, SERVICE_TOKEN))
    assert found["nooble_scrape_parts_missing"] == {"": 4.0}
    assert found["nooble_tasks_lost"] == {"": 0.0}
    assert "nooble_tasks_accepted" not in found


def test_without_the_database_valkey_still_tells(
    client: Client, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise OperationalError("away")

    monkeypatch.setattr(health, "of_tasks", away)
    monkeypatch.setattr(views, "_of_deliveries", away)
    found = figures(scrape(client, SERVICE_TOKEN))
    assert found["nooble_scrape_parts_missing"] == {"": 2.0}
    assert found["nooble_tasks_accepted"] == {"agent.execute": 2.0}


def gauges() -> dict[str, dict[str, float]]:
    return {
        family.name: {"|".join(sample.labels.values()): sample.value for sample in family.samples}
        for family in health.of_tasks()
    }


@pytest.mark.parametrize(
    ("status", "clock", "is_lost"),
    [
        ("pending", "due_at", True),
        ("queued", "due_at", True),
        ("processing", "lease_until", True),
        ("cancelling", "lease_until", True),
        ("waiting", "due_at", False),
        ("completed", "lease_until", False),
        ("failed", "due_at", False),
    ],
)
def test_a_task_that_nobody_looks_after_is_lost(
    tenant: Tenant, status: str, clock: str, is_lost: bool
) -> None:
    make_task(tenant, status=status, **{clock: Now()})
    assert gauges()["nooble_tasks_lost"] == {"": 0.0}
    make_task(tenant, status=status, **{clock: Now() - LONG_AGO})
    assert gauges()["nooble_tasks_lost"] == {"": float(is_lost)}


def test_open_tasks_and_notices_are_counted_by_rows(tenant: Tenant) -> None:
    make_task(tenant, status="queued")
    make_task(tenant, status="queued")
    make_task(tenant, status="completed")
    Notice.unscoped.create(tenant=tenant, event_id=make_task(tenant).pk, event="x", subject="y", body={})
    found = gauges()
    assert found["nooble_tasks_open"] == {"queued": 2.0, "pending": 1.0}
    assert found["nooble_notices_waiting"] == {"": 1.0}
    assert found["nooble_task_open_seconds"]["queued"] >= 0
