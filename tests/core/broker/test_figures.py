"""What the broker tells of its queues."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis
from redis.client import Pipeline

from core.broker import figures
from core.broker.figures import DeadLetter, TenantFigures
from core.broker.scripts import DEFAULT_CAP
from core.queues.names import DOMAINS
from tests.core.broker.broker import Broker


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(figures, "ROOT", made.root)
    return made


def tenant(domain: str, name: str) -> TenantFigures:
    [found] = [line for line in figures.tenants(domain) if line.tenant_id == name]
    return found


def test_an_empty_broker_has_a_line_of_zeros_a_domain(broker: Broker) -> None:
    lines, dead = figures.totals()
    assert [line.domain for line in lines] == list(DOMAINS)
    assert {(line.waiting, line.running, line.delayed, line.tenants) for line in lines} == {(0, 0, 0, 0)}
    assert dead == 0
    assert figures.tenants("agent") == []
    assert figures.dead_letters() == []


def test_totals_follow_a_messages_life(broker: Broker) -> None:
    def agent() -> tuple[int, int, int, int]:
        line = figures.totals()[0][DOMAINS.index("agent")]
        return line.waiting, line.running, line.delayed, line.tenants

    broker.put("a", "one")
    broker.put("b", "one", "high")
    broker.put("c", "two")
    broker.put("later", "three", due=int(time.time() * 1000) + 60_000)
    assert agent() == (3, 0, 1, 2)
    tags = [dispatch[1] for dispatch in (broker.next(), broker.next(), broker.next()) if dispatch]
    assert agent() == (0, 3, 1, 0)
    broker.settle(tags[0])
    broker.settle(tags[1], "head")
    broker.settle(tags[2], "rejected")
    assert agent() == (1, 0, 1, 1)
    assert figures.totals()[1] == 1


def test_a_tenants_figures(broker: Broker) -> None:
    broker.limit("one", 2.5, 7)
    for number in range(3):
        broker.put(f"a{number}", "one")
    broker.put("b", "two", domain="agent")
    broker.put("c", "two", domain="tool")
    assert broker.next() is not None
    one, two = tenant("agent", "one"), tenant("agent", "two")
    assert (one.cap, one.weight, two.cap, two.weight) == (7, 2.5, DEFAULT_CAP, 1.0)
    assert (one.waiting + two.waiting, one.running + two.running) == (3, 1)
    assert tenant("tool", "two").cap is None


def test_the_oldest_wait_is_that_of_the_oldest_of_all_queues(broker: Broker) -> None:
    broker.put("old", "one", "low")
    key = f"{broker.root}:agent:m:agent:one:execute:low"
    rest = broker.client.lindex(key, 0).partition(b"|")[2]  # type: ignore[union-attr]
    broker.client.lset(key, 0, b"%d|" % int((time.time() - 100) * 1000) + rest)  # type: ignore[arg-type]
    broker.put("young", "one", "high")
    broker.put("other", "two")
    assert 100 <= tenant("agent", "one").oldest_wait < 110
    assert 0 <= tenant("agent", "two").oldest_wait < 10


def test_a_brokers_clock_ahead_of_ours_is_no_negative_wait(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.put("a", "one")
    monkeypatch.setattr(figures.time, "time", lambda: 1_000.0)
    assert tenant("agent", "one").oldest_wait == 0


def test_busiest_first_and_who_only_runs_last(broker: Broker) -> None:
    broker.put("r", "runs-only")
    assert broker.next() is not None
    for name, count in {"few": 1, "many": 5, "some": 3}.items():
        for number in range(count):
            broker.put(f"{name}{number}", name)
    assert [line.tenant_id for line in figures.tenants("agent")] == ["many", "some", "few", "runs-only"]
    assert [line.tenant_id for line in figures.tenants("agent", limit=2)] == ["many", "some"]
    last = tenant("agent", "runs-only")
    assert (last.waiting, last.running, last.oldest_wait) == (0, 1, 0)


def test_the_cost_does_not_grow_with_tenants(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[int] = []
    execute = Pipeline.execute

    def counted(self: Pipeline, raise_on_error: bool = True) -> Any:
        commands.append(len(self.command_stack))
        return execute(self, raise_on_error)

    def cost() -> tuple[int, int]:
        commands.clear()
        figures.totals()
        figures.tenants("agent", limit=10)
        return len(commands), sum(commands)

    for number in range(20):
        broker.put(f"a{number}", f"t{number}")
    monkeypatch.setattr(Pipeline, "execute", counted)
    few = cost()
    for number in range(20, 300):
        broker.put(f"a{number}", f"t{number}")
    assert cost() == few
    assert few[0] == 4


def test_dead_letters_are_newest_first_and_of_any_shape(broker: Broker) -> None:
    for entry in ("queue|why|first|with a bar", "nothing", b"queue|why|\xff"):
        broker.client.lpush(f"{broker.root}:dead", entry)
    assert figures.dead_letters() == [
        DeadLetter("queue", "why", "\ufffd"),
        DeadLetter("nothing", "", ""),
        DeadLetter("queue", "why", "first|with a bar"),
    ]
    assert len(figures.dead_letters(limit=2)) == 2


def test_a_broker_that_is_away_raises_what_callers_catch(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=1)
    monkeypatch.setattr(figures.valkey, "client", lambda: nobody)
    with pytest.raises(redis.RedisError):
        figures.totals()
    with pytest.raises(redis.RedisError):
        figures.tenants("agent")
