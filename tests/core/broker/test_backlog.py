"""What the broker says of a tenant's backlog, and what a process makes of it."""

from __future__ import annotations

import pytest
import redis

from core import valkey
from core.broker import backlog as backlogs
from core.broker.backlog import Backlog, backlog, backlog_beyond, heard
from core.queues.names import QueueName
from tests.core.broker.broker import Broker


def put(broker: Broker, tag: str, tenant: str, domain: str = "agent") -> list[bytes | int] | None:
    queue = str(QueueName(domain, tenant, "execute", "normal"))
    args = [broker.root, domain, tenant, queue, 1, tag, f"c-{tag}", "message", 0]
    answer: list[bytes | int] | None = broker.scripts.put(args=args)
    return answer


def settle(broker: Broker, tag: str, to: str = "", seconds: str = "") -> None:
    broker.scripts.settle(args=[broker.root, "w", tag, to, seconds])


def test_who_puts_is_told_the_backlog() -> None:
    broker = Broker()
    assert put(broker, "1", "t") == [1, 0, b""]
    assert put(broker, "2", "t") == [2, 0, b""]
    assert broker.next() == ("t", "1")
    assert put(broker, "3", "other") == [1, 0, b""]
    assert put(broker, "4", "t") == [2, 1, b""]
    asked = broker.scripts.backlog(args=[broker.root, "agent", "t"])
    assert asked == [2, 1, b""]
    assert broker.scripts.backlog(args=[broker.root, "agent", "nobody"]) == [0, 0, b""]


def test_domains_without_caps_pay_nothing_for_it() -> None:
    broker = Broker()
    assert put(broker, "1", "t", "orchestrator") is None
    assert broker.next(domain="orchestrator") == ("t", "1")
    settle(broker, "1", seconds="3.0")
    assert not list(broker.client.scan_iter(f"{broker.root}:*:seconds:*"))


def test_what_one_takes_is_an_average_of_late() -> None:
    broker = Broker()
    for number in range(4):
        put(broker, str(number), "t")
        broker.next()
    settle(broker, "0", seconds="10.000")
    assert put(broker, "a", "t") == [1, 3, b"10.000"]
    settle(broker, "1", seconds="5.000")
    assert put(broker, "b", "t") == [2, 2, b"9.000"]
    # What went back, died, or was held by nobody knows how long, says nothing.
    settle(broker, "2", to="head", seconds="99")
    settle(broker, "3", to="broken", seconds="99")
    assert put(broker, "c", "t") == [4, 0, b"9.000"]  # one of the two went back
    settle(broker, "gone", seconds="99")
    assert broker.client.get(f"{broker.root}:agent:seconds:t") == b"9.000"
    assert 0 < broker.client.ttl(f"{broker.root}:agent:seconds:t") <= 86_400


def test_the_pace_is_that_of_those_that_run() -> None:
    assert Backlog(5, 4, 2.0, 0.0).drained_in(8) == 4.0
    assert Backlog(5, 0, 2.0, 0.0).drained_in(3) == 6.0
    assert Backlog(5, 4, None, 0.0).drained_in(8) is None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the broker by `backlog_beyond`."""
    questions: list[str] = []
    ask = backlogs._scripts().backlog

    class Asking:
        def backlog(self, args: list[str]) -> object:
            questions.append(args[2])
            return ask(args=args)

    monkeypatch.setattr(backlogs, "_scripts", Asking)
    return questions


def test_below_its_bound_nobody_is_asked(asked: list[str]) -> None:
    assert backlog("agent", "t") is None
    assert backlog_beyond("agent", "t", 1) is None
    heard("agent", "t", [4, 1, b""])
    assert backlog_beyond("agent", "t", 5) is None
    assert asked == []


def test_what_was_beyond_is_asked_for_again_in_a_while(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard("agent", "t", [5, 1, b"2.5"])
    found = backlog_beyond("agent", "t", 5)
    assert found is not None
    assert (found.waiting, found.running, found.seconds) == (5, 1, 2.5)
    assert asked == []
    monkeypatch.setattr(backlogs, "STALE_SECONDS", 0.0)
    assert backlog_beyond("agent", "t", 5) is None  # nothing waits in truth
    assert backlog_beyond("agent", "t", 5) is None
    assert asked == ["t"]


def test_a_broker_that_is_away_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    heard("agent", "t", [5, 1, b""])
    monkeypatch.setattr(backlogs, "STALE_SECONDS", 0.0)
    away = valkey.Client.of("redis://127.0.0.1:1", max_connections=1)
    monkeypatch.setattr(backlogs, "_scripts", lambda: backlogs.Scripts(away))
    with pytest.raises(redis.RedisError):
        away.ping()
    assert backlog_beyond("agent", "t", 5) is None


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlogs, "MOST", 3)
    for number in range(5):
        heard("agent", f"t{number}", [1, 0, b""])
    assert len(backlogs._heard) <= 3
    assert backlog("agent", "t4") is not None
