"""Counting in Valkey: windows, what is left, whom an address is taken for."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from core import ratelimits, selectors, valkey
from core.audit import Origin, asked_by
from core.errors import AuthenticationRequired, RateLimited
from core.models import Tenant
from core.models.audit import AuditSource
from core.ratelimits import (
    Limit,
    _standing,
    count_connect,
    count_question,
    count_request,
    count_stranger,
    count_strangers_connect,
    counting,
    network_of,
    token_refused,
    told_to,
)
from tests.factories import make_tenant

HERE = "192.0.2.7"


@contextmanager
def asked_from(ip: str | None) -> Iterator[None]:
    with asked_by(Origin(AuditSource.API, ip=ip)):
        yield


def passed(count: Any, tries: int) -> int:
    """How many of so many tries in a row pass."""
    passes = 0
    for _ in range(tries):
        try:
            count()
            passes += 1
        except RateLimited:
            pass
    return passes


# --- Rates as windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_minute", "amount", "seconds"),
    [(1, 1, 60), (60, 60, 60), (100, 100, 60), (300, 100, 20), (600, 100, 10), (60_000, 1_000, 1)],
)
def test_a_rate_is_a_burst_in_as_long_as_it_takes(per_minute: int, amount: int, seconds: int) -> None:
    limit = Limit.of("ip", per_minute)
    assert (limit.amount, limit.get_expiry()) == (amount, seconds)


def test_no_rate_allows_more_than_it_says() -> None:
    for per_minute in range(1, 20_000, 7):
        limit = Limit.of("ip", per_minute)
        assert 0.98 * per_minute - 1 <= limit.amount * 60 / limit.get_expiry() <= per_minute


LIMIT = Limit.of("ip", 600)  # 100 in 10 seconds


@pytest.mark.parametrize(
    ("before", "before_ms", "now", "now_ms", "left", "reset"),
    [
        (0, 0, 1, 20_000, 99, 10.0),
        (0, 0, 100, 14_000, 0, 4.0),  # full: more when the window ends
        (100, 10_000, 0, 20_000, 0, 0.0),  # it has just ended: the next millisecond brings one
        (100, 5_000, 50, 15_000, 0, 0.0),
        (100, 5_000, 10, 15_000, 40, 5.0),
        (100, 9_000, 15, 19_000, 0, 0.5),  # the former has to fade from 90 to below 85
    ],
)
def test_what_is_left_and_when_there_is_more(
    before: int, before_ms: int, now: int, now_ms: int, left: int, reset: float
) -> None:
    found = _standing(LIMIT, True, before, before_ms, now, now_ms)
    assert (found.left, found.reset) == (left, pytest.approx(reset))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("2001:db8:1:3::9", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        (None, None),
        ("", None),
        ("unix:", None),
    ],
)
def test_whom_an_address_is_taken_for(address: str | None, network: str | None) -> None:
    assert network_of(address) == network


# --- Of a tenant --------------------------------------------------------------------------------------


def test_an_address_has_its_burst_and_is_told_when_to_come_back(db: None) -> None:
    tenant = make_tenant(ip_requests_per_minute=80)
    with asked_from(HERE), counting() as counted:
        for _ in range(80):
            count_request(tenant.pk)
        with pytest.raises(RateLimited) as refused:
            count_request(tenant.pk)
    assert 1 <= refused.value.retry_after <= 60
    assert refused.value.details == {
        "limit": "ip",
        "requests": 80,
        "seconds": 60,
        "retry_after": refused.value.retry_after,
    }
    assert counted.is_tenants
    assert [standing.left for standing in counted.standings] == [*range(79, -1, -1), 0]
    assert [standing.passes for standing in counted.standings] == [True] * 80 + [False]
    with asked_from("192.0.2.8"):
        count_request(tenant.pk)


def test_an_address_has_a_burst_with_every_tenant(db: None) -> None:
    one, other = make_tenant(ip_requests_per_minute=3), make_tenant(ip_requests_per_minute=3)
    with asked_from(HERE):
        assert passed(lambda: count_request(one.pk), 5) == 3
        assert passed(lambda: count_request(other.pk), 5) == 3


def test_who_is_over_their_own_limit_uses_up_nothing_of_all(db: None) -> None:
    tenant = make_tenant(ip_requests_per_minute=2, tenant_requests_per_minute=4)
    with asked_from(HERE):
        assert passed(lambda: count_request(tenant.pk), 50) == 2
    with asked_from("192.0.2.8"):
        assert passed(lambda: count_request(tenant.pk), 50) == 2
    with asked_from("192.0.2.9"), pytest.raises(RateLimited) as refused:
        count_request(tenant.pk)
    assert refused.value.details["limit"] == "tenant"


def test_questions_count_by_session_and_by_agent(db: None) -> None:
    tenant = make_tenant(session_messages_per_minute=2, agent_requests_per_minute=5)
    agent = uuid.uuid4()
    assert passed(lambda: count_question(tenant.pk, agent, "s1"), 4) == 2
    assert passed(lambda: count_question(tenant.pk, agent, "s2"), 4) == 2
    assert passed(lambda: count_question(tenant.pk, agent), 4) == 1
    assert passed(lambda: count_question(tenant.pk, uuid.uuid4()), 4) == 4


def test_sessions_of_the_same_name_are_strangers_to_each_other(db: None) -> None:
    for tenant in (make_tenant(session_messages_per_minute=1), make_tenant(session_messages_per_minute=1)):
        assert passed(lambda: count_question(tenant.pk, uuid.uuid4(), "same"), 3) == 1  # noqa: B023


def test_connects_are_no_requests(db: None) -> None:
    tenant = make_tenant(ip_connects_per_minute=2, ip_requests_per_minute=3)
    with asked_from(HERE):
        assert passed(lambda: count_connect(tenant.pk), 5) == 2
        assert passed(lambda: count_request(tenant.pk), 5) == 3


def test_a_connection_without_an_address_is_not_counted_by_it(db: None) -> None:
    tenant = make_tenant(ip_requests_per_minute=1, ip_connects_per_minute=1)
    with asked_from(None):
        assert passed(lambda: count_request(tenant.pk), 5) == 5
        assert passed(lambda: count_connect(tenant.pk), 5) == 5


def test_a_tenant_that_does_not_exist_is_nobodys(db: None) -> None:
    with asked_from(HERE), counting() as counted:
        count_request("no-such-tenant")
        count_connect("no-such-tenant")
    assert not counted.is_tenants
    assert counted.standings == []


def test_a_changed_number_is_in_force_with_the_next_look(db: None) -> None:
    tenant = make_tenant(ip_requests_per_minute=1)
    with asked_from(HERE):
        assert passed(lambda: count_request(tenant.pk), 2) == 1
        type(tenant.tier).objects.filter(pk=tenant.tier_id).update(ip_requests_per_minute=None)
        selectors._limits.clear()
        assert passed(lambda: count_request(tenant.pk), 9) == 9


# --- Of nobody ----------------------------------------------------------------------------------------


def test_what_concerns_no_tenant_is_counted_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ratelimits.STRANGERS, ratelimits.STRANGERS_CONNECTS) == (600, 300)
    monkeypatch.setattr(ratelimits, "STRANGERS", 50)
    monkeypatch.setattr(ratelimits, "STRANGERS_CONNECTS", 40)
    with asked_from(HERE):
        assert passed(count_stranger, 70) == 50
        assert passed(count_strangers_connect, 70) == 40


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", None])
def test_this_machine_is_no_stranger(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimits, "STRANGERS", 5)
    with asked_from(address):
        assert passed(count_stranger, 20) == 20


def test_an_error_of_no_tenant_becomes_another_after_too_many(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratelimits, "STRANGERS", 10)
    tenant = make_tenant()
    error = AuthenticationRequired()
    with asked_from(HERE), counting():
        assert all(told_to(error) is error for _ in range(10))
        assert isinstance(told_to(error), RateLimited)
        count_request(tenant.pk)
        assert told_to(error) is error
    assert told_to(error) is error  # outside a request


@pytest.mark.parametrize("address", [HERE, "127.0.0.1", "2001:db8::1"])
def test_refused_tokens_are_twenty_a_minute_for_everybody(address: str) -> None:
    error = AuthenticationRequired()
    with asked_from(address):
        assert all(token_refused(error) is error for _ in range(20))
        limited = token_refused(error)
    assert isinstance(limited, RateLimited)
    assert 1 <= limited.retry_after <= 60
    with asked_from("192.0.2.99"):
        assert token_refused(error) is error


# --- Valkey -------------------------------------------------------------------------------------------


def test_where_valkey_is_away_everybody_passes(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = make_tenant(ip_requests_per_minute=1, session_messages_per_minute=1, ip_connects_per_minute=1)
    away = valkey.Client.of("redis://127.0.0.1:1", max_connections=1)
    monkeypatch.setattr(valkey, "client", lambda: away)
    with asked_from(HERE), counting() as counted:
        assert passed(lambda: count_request(tenant.pk), 3) == 3
        assert passed(lambda: count_question(tenant.pk, uuid.uuid4(), "s"), 3) == 3
        assert passed(lambda: count_connect(tenant.pk), 3) == 3
        assert isinstance(token_refused(AuthenticationRequired()), AuthenticationRequired)
    assert counted.standings == []


def test_a_valkey_that_has_lost_the_scripts_is_given_them_again(db: None) -> None:
    tenant = make_tenant(ip_requests_per_minute=2)
    with asked_from(HERE):
        count_request(tenant.pk)
        valkey.client().script_flush()
        assert passed(lambda: count_request(tenant.pk), 3) == 1


@pytest.fixture
def asked_valkey(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this process says to Valkey from now on."""
    said: list[str] = []
    send = redis.connection.AbstractConnection.send_packed_command

    def listen(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        said.append(repr(command)[:80])
        return send(self, command, *args, **kwargs)

    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", listen)
    return said


def test_a_tier_without_limits_asks_nobody(tenant: Tenant, asked_valkey: list[str]) -> None:
    with asked_from(HERE), counting() as counted:
        count_request(tenant.pk)
        count_connect(tenant.pk)
        count_question(tenant.pk, uuid.uuid4(), "s")
    assert asked_valkey == []
    assert counted.is_tenants
    assert counted.standings == []


def test_each_limit_is_one_round_trip(db: None, asked_valkey: list[str]) -> None:
    tenant = make_tenant(ip_requests_per_minute=600, session_messages_per_minute=60)
    with asked_from(HERE):
        count_request(tenant.pk)  # Valkey may have to be given the scripts
        asked_valkey.clear()
        count_request(tenant.pk)
        count_question(tenant.pk, uuid.uuid4(), "s")
    assert len(asked_valkey) == 2
