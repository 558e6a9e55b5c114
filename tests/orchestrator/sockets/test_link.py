"""How much at once, and how much a second."""

from __future__ import annotations

import time

import pytest

from orchestrator.sockets.link import Bucket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def taken(bucket: Bucket) -> int:
    number = 0
    while bucket.take():
        number += 1
    return number


def test_a_bucket_gives_a_burst_and_then_what_time_brings(clock: Clock) -> None:
    bucket = Bucket(burst=20, rate=8.0)
    assert taken(bucket) == 20
    clock.now += 0.3125
    assert taken(bucket) == 2
    clock.now += 0.0625
    assert taken(bucket) == 1


def test_what_weighs_more_takes_more(clock: Clock) -> None:
    bucket = Bucket(burst=20, rate=8.0)
    assert bucket.take(15)
    assert not bucket.take(6)
    assert bucket.take(5)


def test_a_bucket_never_holds_more_than_a_burst(clock: Clock) -> None:
    bucket = Bucket(burst=20, rate=10.0)
    clock.now += 3600
    assert taken(bucket) == 20
