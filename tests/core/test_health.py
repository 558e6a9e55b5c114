"""Whether work gets through."""

from __future__ import annotations

import time
from collections.abc import Iterator

import orjson
import pytest
from celery import Celery
from celery.beat import BeatLazyFunc
from django.conf import settings
from redis.client import Pipeline

from core import health, valkey
from core.broker import figures
from core.queues.names import DOMAINS
from tests.core.broker.broker import Broker


@pytest.fixture(autouse=True)
def no_marks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hash of this test's own."""
    monkeypatch.setattr(health, "_MARKS", "nooble:test:probe")
    valkey.client().delete("nooble:test:probe")
    yield
    valkey.client().delete("nooble:test:probe")


def mark(domain: str, seconds_ago: float) -> None:
    body = orjson.dumps({"at": time.time() - seconds_ago, "queue_ms": 2.0, "database_ms": 1.0})
    valkey.client().hset("nooble:test:probe", domain, body)


def test_a_platform_that_was_never_probed_is_unavailable() -> None:
    healthy, found = health.read()
    components = found["components"]
    assert not healthy
    assert list(components) == list(DOMAINS)
    assert components["agent"]["status"] == "unavailable"
    assert components["agent"]["last_probe_seconds_ago"] is None


def test_every_domain_walked_a_moment_ago_is_healthy() -> None:
    for domain in DOMAINS:
        mark(domain, seconds_ago=2)
    healthy, found = health.read()
    components = found["components"]
    assert healthy
    assert {component["status"] for component in components.values()} == {"ok"}
    assert components["agent"]["last_probe_seconds_ago"] >= 2


@pytest.mark.parametrize("domain", DOMAINS)
def test_one_stale_domain_is_enough(domain: str) -> None:
    for other in DOMAINS:
        mark(other, seconds_ago=40 if other == domain else 5)
    healthy, found = health.read()
    components = found["components"]
    assert not healthy
    assert [name for name, state in components.items() if state["status"] != "ok"] == [domain]


def test_one_missing_domain_is_enough() -> None:
    for domain in DOMAINS[1:]:
        mark(domain, seconds_ago=0)
    healthy, found = health.read()
    components = found["components"]
    assert not healthy
    assert components[DOMAINS[0]]["status"] == "unavailable"


def test_a_probe_leaves_its_mark(db: None) -> None:
    for domain in DOMAINS:
        health.probe(domain, time.time() - 0.25)
    healthy, found = health.read()
    components = found["components"]
    assert healthy
    assert components["agent"]["last_probe_seconds_ago"] < health.STALE_SECONDS


def test_the_state_tells_totals_and_no_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    broker.put("a", "demo")
    broker.put("b", "demo")
    broker.put("c", "other", due=int(time.time() * 1000) + 60_000)
    assert broker.next() is not None
    broker.client.lpush(f"{broker.root}:dead", "queue|reason|message")
    monkeypatch.setattr(figures, "ROOT", broker.root)
    _healthy, found = health.read()
    assert found["dead_letters"] == 1
    assert set(found["components"]["agent"]) == {
        "status",
        "last_probe_seconds_ago",
        "waiting",
        "running",
        "delayed",
    }
    assert {name: found["components"]["agent"][name] for name in ("waiting", "running", "delayed")} == {
        "waiting": 1,
        "running": 1,
        "delayed": 1,
    }
    assert found["components"]["tool"]["waiting"] == 0
    assert "demo" not in str(found)


def test_the_state_is_read_in_one_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    execute = Pipeline.execute

    def counted(self: Pipeline, raise_on_error: bool = True) -> object:
        sent.append(len(self.command_stack))
        return execute(self, raise_on_error)

    monkeypatch.setattr(Pipeline, "execute", counted)
    health.read()
    assert len(sent) == 1


def test_celery_knows_the_probe() -> None:
    app = Celery("test", set_as_current=False)
    health.register(app)
    assert health.PROBE in app.tasks


def samples() -> dict[tuple[str, ...], float]:
    """What Prometheus is told of the queues."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in health.of_queues()
        for sample in family.samples
    }


def test_the_metrics_tell_of_each_domain_what_the_probe_met(db: None) -> None:
    health.probe("agent", time.time() - 0.25)
    found = samples()
    assert 0.25 <= found["nooble_probe_seconds", "agent", "queue"] < 60
    assert 0 < found["nooble_probe_seconds", "agent", "database"] < 60
    assert 0 <= found["nooble_probe_age_seconds", "agent"] < 60
    assert ("nooble_probe_seconds", "tool", "queue") not in found
    assert found["nooble_queue_messages", "tool", "waiting"] == 0


def test_a_sender_whose_clock_is_ahead_makes_no_wait_below_nothing(db: None) -> None:
    health.probe("agent", time.time() + 60)
    assert samples()["nooble_probe_seconds", "agent", "queue"] == 0


def test_the_metrics_tell_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    broker.put("a", "demo")
    broker.put("b", "demo")
    assert broker.next() is not None
    broker.client.lpush(f"{broker.root}:dead", "queue|reason|message")
    monkeypatch.setattr(figures, "ROOT", broker.root)
    found = samples()
    assert found["nooble_queue_messages", "agent", "waiting"] == 1
    assert found["nooble_queue_messages", "agent", "running"] == 1
    assert found["nooble_queue_tenants", "agent"] == 1
    assert found["nooble_dead_letters",] == 1


def test_beat_tells_when_it_sends_the_probe() -> None:
    for domain in DOMAINS:
        entry = settings.CELERY_BEAT_SCHEDULE[f"probe-{domain}"]
        probed, sent_at = [each() if isinstance(each, BeatLazyFunc) else each for each in entry["args"]]
        assert (entry["task"], probed) == (health.PROBE, domain)
        assert abs(time.time() - sent_at) < 60
