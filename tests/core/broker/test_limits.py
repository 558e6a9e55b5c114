"""Weights and caps reach the broker: by saving, and again when it has lost them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from core import valkey
from core.broker import limits
from core.models import Tenant, Tier
from core.selectors import tenant_queue_limits
from tests.factories import make_tenant, random_slug

HASH, TOLD = "nooble:test:limits", "nooble:test:limits:told"


@pytest.fixture(autouse=True)
def hash_of_our_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(limits, "_LIMITS", HASH)
    monkeypatch.setattr(limits, "_TOLD", TOLD)
    client = valkey.client()
    client.delete(HASH, TOLD)
    yield
    client.delete(HASH, TOLD)


def known() -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = valkey.client().hgetall(HASH)  # type: ignore[assignment]
    return found


@pytest.mark.usefixtures("transactional_db")
def test_saving_a_tenant_tells_its_tiers_limits() -> None:
    tenant = make_tenant(weight=4, max_running=3)
    assert known() == {tenant.pk.encode(): b"4 3"}


@pytest.mark.usefixtures("transactional_db")
def test_saving_a_tier_tells_those_of_all_its_tenants() -> None:
    tenant, other = make_tenant(weight=1, max_running=3), make_tenant()
    twin = Tenant.objects.create(id=random_slug(), name="Twin", tier=tenant.tier)
    tenant.tier.weight, tenant.tier.max_running = 0.25, 8
    tenant.tier.save()
    assert known() == {
        tenant.pk.encode(): b"0.25 8",
        twin.pk.encode(): b"0.25 8",
        other.pk.encode(): b"1 10",
    }


@pytest.mark.usefixtures("transactional_db")
def test_another_tier_is_told() -> None:
    tenant = make_tenant()
    tenant.tier = Tier.objects.create(slug=random_slug("tier"), name="Big", weight=9, max_running=99)
    tenant.save()
    assert known()[tenant.pk.encode()] == b"9 99"


def test_what_is_rolled_back_is_never_told(tenant: Tenant) -> None:
    assert tenant.pk.encode() not in known()


def test_all_are_told_in_place_of_what_was_known() -> None:
    limits.tell([("gone", 1, 1)])
    assert not limits.are_told()
    limits.tell_all((f"t{number}", 1.5, number) for number in range(1, 2_501))
    assert limits.are_told()
    assert len(known()) == 2_500
    assert known()[b"t2500"] == b"1.5 2500"
    assert valkey.client().exists(f"{HASH}:fresh") == 0
    limits.tell_all([])
    assert known() == {}


def test_nothing_to_tell_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.valkey, "client", None)
    limits.tell([])


@pytest.mark.usefixtures("transactional_db")
def test_a_broker_that_is_away_stops_no_save(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=1)
    monkeypatch.setattr(limits.valkey, "client", lambda: nobody)
    tenant = make_tenant()
    assert Tenant.objects.filter(pk=tenant.pk).exists()
    assert "limits are told later" in caplog.text


@pytest.mark.usefixtures("transactional_db")
def test_the_source_of_limits_names_every_tenant() -> None:
    tenant = make_tenant(weight=2, max_running=5)
    assert list(tenant_queue_limits()) == [(tenant.pk, 2.0, 5)]
