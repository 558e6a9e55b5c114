"""How many sockets all web processes have together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis

from core import aio, valkey
from orchestrator.sockets import census as module
from orchestrator.sockets.census import Census, census, totals

Scenario = Callable[[], Awaitable[None]]


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hash of our own."""
    key = "nooble:test:sockets"
    monkeypatch.setattr(module, "_COUNTS", key)
    census.cache_clear()
    yield key
    valkey.client().delete(key)
    census.cache_clear()


@pytest.fixture(autouse=True)
def limit(settings: Any) -> None:
    settings.MAX_WEBSOCKET_CONNECTIONS = 10


async def admitted(*processes: Census) -> int:
    """How many of a dozen connects to each process come in, all at once."""
    answers = await asyncio.gather(*(one.admit("s.x") for one in processes for _ in range(12)))
    return sum(room for room, _ in answers)


def test_as_many_come_in_as_there_is_room_for() -> None:
    async def scenario() -> None:
        one = Census()
        assert await admitted(one) == one.held == 10
        assert one.is_full
        one.release()
        assert not one.is_full
        assert await admitted(one) == 1

    aio.run(scenario())


def test_the_room_is_shared_by_all_processes() -> None:
    async def scenario() -> None:
        processes = [Census() for _ in range(5)]
        assert await admitted(*processes) == 10
        assert sum(one.held for one in processes) == 10

    aio.run(scenario())
    assert totals() == {"connections": 10, "processes": 6}  # and ours, which has none


def test_what_a_process_tells_makes_room_for_the_others() -> None:
    async def scenario() -> None:
        one, two = Census(), Census()
        assert await admitted(one) == 10
        for _ in range(4):
            one.release()
        assert await admitted(two) == 0
        await one.tell()
        assert await admitted(two) == 4
        await one.leave()
        assert await admitted(two) == 6

    aio.run(scenario())


def test_a_process_that_tells_nothing_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        assert await admitted(Census()) == 10
        monkeypatch.setattr(module, "STALE_SECONDS", -1.0)
        assert await admitted(Census()) == 10

    aio.run(scenario())
    assert totals()["connections"] == 0


def test_a_count_that_was_lost_is_told_again() -> None:
    async def scenario() -> None:
        one = Census()
        await admitted(one)
        await valkey.async_client().delete(module._COUNTS)
        await one.tell()
        assert await admitted(Census()) == 0

    aio.run(scenario())


def test_the_tail_of_the_log_comes_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tails(names: list[str]) -> list[int | None]:
        return [int(name) if name != "none" else None for name in names]

    async def scenario() -> None:
        one = Census()
        answers = await asyncio.gather(*(one.admit(name) for name in ("5", "none", "7")))
        assert answers == [(True, 5), (True, None), (True, 7)]

    monkeypatch.setattr(module.log, "tails", tails)
    aio.run(scenario())


def test_who_does_not_wait_any_more_is_not_counted() -> None:
    async def scenario() -> None:
        one = Census()
        leaver, stayer = (asyncio.ensure_future(one.admit("s.x")) for _ in range(2))
        await asyncio.sleep(0)
        leaver.cancel()
        assert await stayer == (True, None)
        assert one.held == 1

    aio.run(scenario())


def test_who_stops_waiting_as_the_answer_comes_is_not_counted() -> None:
    async def scenario() -> None:
        one = Census()
        leaver = asyncio.ensure_future(one.admit("s.x"))
        while not one.held:  # noqa: ASYNC110 - no step later
            await asyncio.sleep(0)
        leaver.cancel()
        assert (await asyncio.gather(leaver, return_exceptions=True)) != [(True, None)]
        assert one.held == 0

    aio.run(scenario())


def test_where_valkey_is_away_everybody_who_waits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(names: list[str]) -> list[int | None]:
        raise redis.ConnectionError("away")

    async def scenario() -> None:
        one = Census()
        with monkeypatch.context() as patch:
            patch.setattr(module.log, "tails", away)
            answers = await asyncio.gather(*(one.admit("s.x") for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [redis.ConnectionError] * 3
        assert one.held == 0
        assert await admitted(one) == 10

    aio.run(scenario())
