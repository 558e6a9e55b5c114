"""The measuring processes of the queues work, and so does the arithmetic of what they print."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.queues import Bench, most_and_average
from nooble.embedded import discard


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    home = Path(tempfile.mkdtemp(prefix="nooble-test-", dir="/tmp"))
    with ExitStack() as exits:
        exits.callback(discard, home)
        yield Bench(exits, home)


@pytest.mark.parametrize("transport", [[], ["--stock"]])
def test_a_consumer_measures_on_request(bench: Bench, transport: list[str]) -> None:
    with bench.child(
        "throughput", bench.database(), "--queues", 3, "--spare", 20, "--seconds", 10, *transport
    ) as child:
        assert child.must_result() == {"filled": True}
        for _ in range(2):
            child.say(10)
            result = child.must_result()
            assert result["published"] > 0
            assert result["consumed"] > 0


def test_overlaps_are_counted_until_the_last_begins() -> None:
    assert most_and_average([(0.0, 2.0), (1.0, 3.0), (2.0, 9.0)]) == (2, 1.5)
