"""What processes count, in one sum."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from core import metrics, valkey
from core.metrics import Counter, Flusher, Histogram
from tests.factories import random_slug


@pytest.fixture(autouse=True)
def own_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums and families of this test's own."""
    root = f"nooble:test:{random_slug()}"
    monkeypatch.setattr(metrics, "ROOT", root)
    monkeypatch.setattr(metrics, "FAMILIES", [])
    monkeypatch.setattr(metrics, "_counted", {})
    yield
    for key in valkey.client().scan_iter(f"{root}:*"):
        valkey.client().delete(key)


@pytest.fixture
def counter() -> Counter:
    return Counter("nooble_things", "Things", "kind", per_tenant=True)


@pytest.fixture
def histogram() -> Histogram:
    return Histogram("nooble_thing_seconds", "How long", "kind", bounds=(0.1, 1.0))


def samples(families: Any) -> dict[str, float]:
    """What a scrape says: `name{labels}`."""
    text = metrics.exposed(families).decode()
    return {
        sample.name + "".join(f"|{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_processes_are_one_sum(counter: Counter) -> None:
    for process, amount in ((Flusher(), 2.0), (Flusher(), 3.0)):
        counter.add("a", by=amount)
        process.flush()
    counter.add("b")
    process.flush()
    assert samples(metrics.totals()) == {"nooble_things_total|a": 5.0, "nooble_things_total|b": 1.0}


def test_what_is_not_told_yet_is_in_no_sum(counter: Counter) -> None:
    counter.add("a")
    assert samples(metrics.totals()) == {}


def test_tenants_are_a_family_of_their_own(counter: Counter) -> None:
    counter.add("a", tenant_id="acme")
    counter.add("a", by=2.0, tenant_id="other")
    counter.add("a")
    Flusher().flush()
    assert samples(metrics.totals()) == {"nooble_things_total|a": 4.0}
    assert samples(metrics.of_tenants()) == {
        "nooble_tenant_things_total|a|acme": 1.0,
        "nooble_tenant_things_total|a|other": 2.0,
    }
    assert samples(metrics.of_tenants(["acme"])) == {"nooble_tenant_things_total|a|acme": 1.0}
    assert samples(metrics.of_tenants(["nobody"])) == {}
    assert samples(metrics.of_tenants([])) == {}


def test_a_scrape_has_the_tenants_that_did_something_last(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_TENANTS", 2)
    for tenant in ("a", "b", "c"):
        counter.add("x", tenant_id=tenant)
    Flusher().flush()
    valkey.client().zadd(f"{metrics.ROOT}:tenants", {"a": 1})
    assert set(samples(metrics.of_tenants())) == {
        "nooble_tenant_things_total|x|b",
        "nooble_tenant_things_total|x|c",
    }


def test_a_tenant_that_does_nothing_is_forgotten(counter: Counter) -> None:
    counter.add("x", tenant_id="acme")
    Flusher().flush()
    assert 0 < valkey.client().ttl(f"{metrics.ROOT}:of:acme") <= metrics.KEPT_SECONDS
    valkey.client().zadd(f"{metrics.ROOT}:tenants", {"acme": 1})
    counter.add("x", tenant_id="other")
    Flusher().flush()
    assert valkey.client().zrange(f"{metrics.ROOT}:tenants", 0, -1) == [b"other"]


def test_a_histogram_counts_buckets_up_to_their_ends(histogram: Histogram) -> None:
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds, "a")
    Flusher().flush()
    found = samples(metrics.totals())
    assert found.pop("nooble_thing_seconds_sum|a") == pytest.approx(7.65)
    assert found == {
        "nooble_thing_seconds_bucket|a|0.1": 2.0,
        "nooble_thing_seconds_bucket|a|1": 3.0,
        "nooble_thing_seconds_bucket|a|+Inf": 4.0,
        "nooble_thing_seconds_count|a": 4.0,
    }


def test_nothing_is_lost_between_threads(counter: Counter) -> None:
    process = Flusher()

    def count() -> None:
        for _ in range(2_000):
            counter.add("a", tenant_id="acme")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        process.flush()
    process.flush()
    assert samples(metrics.totals()) == {"nooble_things_total|a": 8_000.0}


class LostAnswer:
    """Valkey that does what it is told; the answer gets lost the first time."""

    def __init__(self, script: Any) -> None:
        self._script = script
        self.asked = 0

    def __call__(self, **options: Any) -> Any:
        answer = self._script(**options)
        self.asked += 1
        if self.asked == 1:
            raise redis.TimeoutError("no answer")
        return answer


def test_a_batch_that_is_told_twice_counts_once(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = LostAnswer(metrics._add())
    monkeypatch.setattr(metrics, "_add", lambda: lost)
    process = Flusher()
    counter.add("a")
    with pytest.raises(redis.TimeoutError):
        process.flush()
    counter.add("a")
    process.flush()  # the same batch
    process.flush()
    assert lost.asked == 3
    assert samples(metrics.totals()) == {"nooble_things_total|a": 2.0}


def test_while_valkey_is_away_counts_wait(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_: Any) -> Any:
        raise redis.ConnectionError("away")

    process = Flusher()
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "_add", lambda: away)
        for _ in range(3):
            counter.add("a")
            process._try()
    process.flush()
    process.flush()
    assert samples(metrics.totals()) == {"nooble_things_total|a": 3.0}


def test_much_is_told_in_slices(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SLICE", 10)
    for number in range(95):
        counter.add(str(number))
    Flusher().flush()
    assert len(samples(metrics.totals())) == 95


def test_a_process_that_ends_tells_the_rest(counter: Counter) -> None:
    process = Flusher()
    process._thread.start()
    counter.add("a")
    process.stop()
    assert samples(metrics.totals()) == {"nooble_things_total|a": 1.0}


def test_what_another_version_counted_is_left_out(counter: Counter, histogram: Histogram) -> None:
    counter.add("a")
    Flusher().flush()
    fields = {"nooble_things\ta\tb": 1, "nooble_gone\ta": 1, "nooble_thing_seconds": 1}
    valkey.client().hset(f"{metrics.ROOT}:all", mapping=fields)  # type: ignore[arg-type]
    assert samples(metrics.totals()) == {"nooble_things_total|a": 1.0}
