"""Who is served when: shares, caps, ageing, and that a flood delays nobody."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from core.broker.scripts import CAPPED_DOMAINS, DEFAULT_CAP
from core.queues.names import DOMAINS
from tests.core.broker.broker import AGEING, Broker

FREE = "orchestrator"  # a domain without caps


@pytest.fixture
def broker() -> Broker:
    return Broker()


def served(broker: Broker, turns: int, domain: str = FREE) -> list[str]:
    """Tenants in the order of dispatch, each message done at once."""
    order = []
    for _ in range(turns):
        dispatch = broker.next(domain=domain)
        assert dispatch is not None
        order.append(dispatch[0])
        assert broker.settle(dispatch[1])
    return order


def test_a_flood_delays_others_by_no_more_than_a_round(broker: Broker) -> None:
    for number in range(10_000):
        broker.put(f"flood-{number}", "flood", domain=FREE)
    served(broker, 100)
    tenants = [f"t{number}" for number in range(20)]
    for tenant in tenants:
        broker.put(f"one-{tenant}", tenant, domain=FREE)
    assert set(tenants) <= set(served(broker, len(tenants) + 2))


def test_who_comes_back_again_and_again_gets_no_more_than_a_share(broker: Broker) -> None:
    """One message at a time, each put when the last one is done, against a backlog."""
    for number in range(200):
        broker.put(f"backlog-{number}", "backlog", domain=FREE)
    shares: Counter[str] = Counter()
    for number in range(200):
        if not broker.count("waiting", "single", FREE):
            broker.put(f"single-{number}", "single", domain=FREE)
        shares.update(served(broker, 1))
    assert abs(shares["single"] - shares["backlog"]) <= 2


def test_weights_share_the_dispatches(broker: Broker) -> None:
    broker.limit("heavy", 4, 10)
    broker.limit("light", 1, 10)
    for number in range(1_000):
        for tenant in ("heavy", "light"):
            broker.put(f"{tenant}-{number}", tenant, domain=FREE)
    shares = Counter(served(broker, 1_000))
    assert 4 * 0.9 <= shares["heavy"] / shares["light"] <= 4 * 1.1


def test_a_cap_is_never_exceeded_and_always_used(broker: Broker) -> None:
    broker.limit("a", 1, 3)
    for number in range(10):
        broker.put(f"m{number}", "a")
    leased = [broker.next() for _ in range(3)]
    assert all(leased)
    assert broker.next() is None
    assert broker.settle(leased[0][1])
    assert broker.next() is not None
    assert broker.next() is None


def test_a_tenant_nobody_has_limited_has_the_default_cap(broker: Broker) -> None:
    for number in range(DEFAULT_CAP + 1):
        broker.put(f"m{number}", "a")
    assert all(broker.next() for _ in range(DEFAULT_CAP))
    assert broker.next() is None


@pytest.mark.parametrize("domain", sorted(set(DOMAINS) - set(CAPPED_DOMAINS)))
def test_callbacks_and_tools_have_no_cap(broker: Broker, domain: str) -> None:
    broker.limit("a", 1, 1)
    for number in range(50):
        broker.put(f"m{number}", "a", domain=domain)
    assert all(broker.next(domain=domain) for _ in range(50))


def test_a_raised_cap_is_used_after_a_repair(broker: Broker) -> None:
    broker.limit("a", 1, 1)
    broker.put("m1", "a")
    broker.put("m2", "a")
    assert broker.next()
    assert not broker.next()
    broker.limit("a", 1, 2)
    broker.repair()
    assert broker.next()


def test_priority_orders_the_work_inside_a_tenant(broker: Broker) -> None:
    for priority in ("low", "normal", "high"):
        broker.put(priority, "a", priority)
    assert [broker.next()[1] for _ in range(3)] == ["high", "normal", "low"]


def test_low_ages_upwards(broker: Broker) -> None:
    """A low message that has waited two steps of ageing goes before a high one of now."""
    key = f"{broker.root}:agent:m:agent:a:execute:low"
    broker.put("low", "a", "low")
    [entry] = broker.client.lrange(key, 0, -1)
    long_ago = int(time.time() * 1000) - 2 * AGEING - 1_000
    broker.client.lset(key, 0, b"%d|" % long_ago + entry.split(b"|", 1)[1])
    broker.put("high", "a", "high")
    assert [broker.next()[1] for _ in range(2)] == ["low", "high"]


def test_what_is_delayed_waits_without_a_lease(broker: Broker) -> None:
    soon = int(time.time() * 1000) + 300
    broker.put("later", "a", due=soon)
    assert broker.next() is None
    assert broker.count("running", "a") == 0
    while not broker.scripts.due(args=[broker.root, 10, "agent"]):
        assert time.time() * 1000 < soon + 5_000
    assert broker.next() == ("a", "later")


def test_what_nobody_can_read_is_set_aside(broker: Broker) -> None:
    broker.put("good", "a")
    broker.client.rpush(f"{broker.root}:agent:m:agent:a:execute:normal", b"\x80\x04garbage")
    assert broker.next() == ("a", "good")
    [dead] = broker.client.lrange(f"{broker.root}:dead", 0, -1)
    assert dead == b"agent:a:execute:normal|not a message|\x80\x04garbage"


def test_many_tenants_leave_nothing_behind(broker: Broker) -> None:
    for number in range(3_000):
        broker.put(f"m{number}", f"t{number}", domain=FREE)
    assert len(set(served(broker, 3_000))) == 3_000
    assert not list(broker.client.scan_iter(f"{broker.root}:{FREE}:m:*"))
    assert not list(broker.client.scan_iter(f"{broker.root}:{FREE}:q:*"))
