"""What a flood of runs does to turns and callbacks, on the platform as `make run` starts it.

Tenant A may run a few agents at once and gets 2,000 messages. Its runs take seconds and cost little
CPU, so what is measured is the queues and not a machine at its limit.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.fake_model import answer_text
from bench.stack import clean_environment, start
from bench.turns import Books, Platform, Turn, TurnFailed, median_and_95
from nooble.env import ROOT

FLOOD = 2_000  # queued runs
CAP = 10  # of them at once

_SHORT_TOKENS = 10
_SHORT = f"fake?tokens={_SHORT_TOKENS}"  # 0.15 s
_LONG_TOKENS = 50
_LONG = f"fake?interval=0.1&tokens={_LONG_TOKENS}"  # 5 s
_POSTS_AT_ONCE = 16
_LISTENED = 90  # of the flood's first runs: as many as may end while it is measured
_SECONDS = 8.0
_WARM_UP_TURNS = 5


@dataclass(frozen=True)
class Latency:
    """Median and 95th percentile in seconds.

    `overhead` is a turn from its POST to `task_completed` but for the model's own time; `callback` is
    what of it comes after the model's last byte.
    """

    turns: int
    overhead: tuple[float, float]
    callback: tuple[float, float]


@dataclass(frozen=True)
class Callbacks:
    """Tenant B beside nobody and beside A's flood; A alone and in its own flood."""

    other_idle: Latency
    other_flooded: Latency
    same_idle: Latency
    same_flooded: Latency
    queued: tuple[int, int]  # of the flood, when the measurement began and ended
    posts: float  # a second


def callbacks(home: Path) -> Callbacks:
    """Raises ProcessFailed or TurnFailed."""
    with ExitStack() as exits:
        started = start(exits, home)
        made = subprocess.run(
            [sys.executable, "-m", "bench.tenants", str(CAP), "bench-a", "bench-b"],
            cwd=ROOT,
            env=clean_environment(home),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if made.returncode != 0:
            raise TurnFailed(f"no tenants: {made.stderr[-2_000:]}")
        return asyncio.run(_measure(started.demo["base_url"], started.model_url, json.loads(made.stdout)))


async def _measure(base_url: str, model_url: str, keys: dict[str, str]) -> Callbacks:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session:
        books = Books(session, model_url, interval=0.0)

        async def tenant(name: str, model: str, tokens: int) -> Platform:
            platform = Platform(session, base_url, name, keys[name], answer_text(tokens))
            await platform.make_agent(model)
            return platform

        same = await tenant("bench-a", _SHORT, _SHORT_TOKENS)
        other = await tenant("bench-b", _SHORT, _SHORT_TOKENS)
        flood = await tenant("bench-a", _LONG, _LONG_TOKENS)
        for platform in (same, other):
            await _one_by_one(platform, turns=_WARM_UP_TURNS)
        same_idle = await _one_by_one(same, seconds=_SECONDS / 2)
        other_idle = await _one_by_one(other, seconds=_SECONDS)

        asked = [asyncio.Event() for _ in range(_LISTENED)]
        listened = [asyncio.create_task(flood.turn(event)) for event in asked]
        try:
            async with asyncio.timeout(30):
                await asyncio.gather(*(event.wait() for event in asked))
            posts = await _post(flood, FLOOD - _LISTENED)
            queued = await _waiting(books)
            since = time.time()
            other_flooded = await _one_by_one(other, seconds=_SECONDS)
            until = time.time()
            queued_after = await _waiting(books)
            ended = [task.result() for task in listened if task.done()]
        finally:
            for task in listened:
                task.cancel()
            await asyncio.gather(*listened, return_exceptions=True)
        requests = await books.requests()
    return Callbacks(
        _latency(other_idle, requests),
        _latency(other_flooded, requests),
        _latency(same_idle, requests),
        _latency([turn for turn in ended if since <= turn.finished_at < until], requests),
        (queued, queued_after),
        posts,
    )


async def _one_by_one(platform: Platform, *, turns: int = 10_000, seconds: float = 60.0) -> list[Turn]:
    until = time.monotonic() + seconds
    taken: list[Turn] = []
    while len(taken) < turns and time.monotonic() < until:
        async with asyncio.timeout(30):
            taken.append(await platform.turn())
    return taken


async def _post(platform: Platform, count: int) -> float:
    """So many questions that nobody waits for; returns how many a second were taken."""
    left = iter(range(count))
    began = time.monotonic()

    async def client() -> None:
        for _ in left:
            await platform.ask(secrets.token_urlsafe(16))

    async with asyncio.TaskGroup() as clients:
        for _ in range(_POSTS_AT_ONCE):
            clients.create_task(client())
    return count / (time.monotonic() - began)


async def _waiting(books: Books) -> int:
    """How many of the flood's runs have not reached the model."""
    begun = [request for request in (await books.requests()).values() if request["model"] == _LONG]
    return FLOOD - len(begun)


def _latency(turns: list[Turn], requests: dict[str, dict[str, Any]]) -> Latency:
    overheads, callback = [], []
    for turn in turns:
        request = requests[turn.mark]
        before = request["received_at"] - turn.asked_at
        after = turn.finished_at - request["last_byte_at"]
        overheads.append(before + after)
        callback.append(after)
    if not turns:
        raise TurnFailed("no turn ended in time")
    return Latency(len(turns), median_and_95(overheads), median_and_95(callback))
