"""What a batch of one tenant does to the conversations of another, on the platform as `make run` starts it.

A few clients of tenant A chat without pause: alone, then while a batch of tenant B is worked through, then
alone again. The items are answers of about two seconds, as a model gives them; how many of them go on at
once is the platform's own choice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.fake_model import answer_text
from bench.processes import ProcessFailed
from bench.stack import TOKENS, clean_environment, start
from bench.turns import Platform, TurnFailed, median_and_95
from nooble.embedded import discard
from nooble.env import ROOT

TENANT, CAP = "bench-batch", 1_000
CLIENTS = 5
ITEM_TOKENS, ITEM_INTERVAL = 100, 0.02
_ITEM = f"fake?tokens={ITEM_TOKENS}&interval={ITEM_INTERVAL}"
_TURN = "fake"
_WARM_UP_SECONDS = 3.0
_POLL_SECONDS = 0.5
_LONGEST = 1_800.0  # seconds
BAR = 1.2  # times the first-token time without a batch


@dataclass(frozen=True)
class Chats:
    """What clients saw of so many turns; seconds to the first token, median and 95th percentile."""

    turns: int
    first_token: tuple[float, float]


@dataclass(frozen=True)
class Figures:
    items: int
    seconds: float
    before: Chats
    beside: Chats
    after: Chats


def batch(arguments: argparse.Namespace) -> int:
    """Prints the table; 0, or 1 where the batch or a turn has failed, or the bar was missed."""
    # Directly under /tmp: the paths of the engines' sockets are limited to about 100 bytes.
    home = Path(tempfile.mkdtemp(prefix="nooble-bench-", dir="/tmp"))
    with ExitStack() as exits:
        exits.callback(discard, home)
        try:
            started = start(exits, home)
            key = _tenant(home)
            figures = asyncio.run(_measure(arguments, started.demo, key))
        except (ProcessFailed, TurnFailed) as error:
            print(f"nothing could be measured: {error}", file=sys.stderr)
            return 1
    return _print(figures)


def _tenant(home: Path) -> str:
    """The key of the tenant that has the batch."""
    made = subprocess.run(
        [sys.executable, "-m", "bench.tenants", str(CAP), TENANT],
        cwd=ROOT,
        env=clean_environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if made.returncode != 0:
        raise TurnFailed(f"no tenant: {made.stderr[-2_000:]}")
    key: str = json.loads(made.stdout)[TENANT]
    return key


async def _measure(arguments: argparse.Namespace, demo: dict[str, Any], key: str) -> Figures:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session:
        chats = Platform(session, demo["base_url"], demo["tenant_id"], demo["api_key"], answer_text(TOKENS))
        await chats.make_agent(_TURN)
        items = _Batch(session, demo["base_url"], key)
        await items.make_agent()

        def alone() -> Awaitable[None]:
            return asyncio.sleep(arguments.seconds)

        await _chatting(chats, lambda: asyncio.sleep(_WARM_UP_SECONDS))
        before = await _chatting(chats, alone)
        begun = time.monotonic()
        beside = await _chatting(chats, lambda: items.work(arguments.items))
        seconds = time.monotonic() - begun
        after = await _chatting(chats, alone)
        return Figures(arguments.items, seconds, before, beside, after)


async def _chatting(chats: Platform, meanwhile: Callable[[], Awaitable[None]]) -> Chats:
    """So many clients take turns without pause while something else goes on. Raises TurnFailed."""
    first_tokens: list[float] = []
    stopping = asyncio.Event()

    async def client(number: int) -> None:
        await asyncio.sleep(0.5 * number / CLIENTS)  # not in step
        while not stopping.is_set():
            turn = await chats.turn()
            first_tokens.append(turn.frames[0][0] - turn.asked_at)

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    await meanwhile()
    stopping.set()
    await asyncio.gather(*clients)
    return Chats(len(first_tokens), median_and_95(first_tokens))


class _Batch:
    """A client that has a batch worked through."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, key: str) -> None:
        self._session = session
        self._url = f"{base_url}/api/v1"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._agent_id = ""

    async def make_agent(self) -> None:
        body = {"name": "Bench", "type": "bench", "config": {"provider": "openai", "model": _ITEM}}
        self._agent_id = (await self._call("POST", "agents", 201, json=body))["agent_id"]

    async def work(self, count: int) -> None:
        """Returns when every item has its answer. Raises TurnFailed when one has not."""
        lines = "\n".join(json.dumps({"custom_id": f"c{n}", "message": f"Item {n}"}) for n in range(count))
        path = f"batch?agent_id={self._agent_id}"
        made = await self._call(
            "POST", path, 202, data=lines.encode(), headers={"Content-Type": "application/jsonl"}
        )
        deadline = time.monotonic() + _LONGEST
        while made["status"] == "processing":
            if time.monotonic() > deadline:
                raise TurnFailed(f"the batch takes too long: {made}")
            await asyncio.sleep(_POLL_SECONDS)
            made = await self._call("GET", f"batch/{made['batch_id']}", 200)
        if made["succeeded"] != count:
            raise TurnFailed(f"not every item has succeeded: {made}")

    async def _call(self, method: str, path: str, expected: int, **options: Any) -> dict[str, Any]:
        headers = self._headers | options.pop("headers", {})
        url = f"{self._url}/{path}"
        async with self._session.request(method, url, headers=headers, **options) as response:
            if response.status != expected:
                raise TurnFailed(f"{method} {path}: {response.status} {await response.text()}")
            answer: dict[str, Any] = await response.json()
            return answer


def _print(figures: Figures) -> int:
    rate = figures.items / figures.seconds
    item_seconds = ITEM_TOKENS * ITEM_INTERVAL
    print(
        f"\n{figures.items} items of {item_seconds:g} s each in {figures.seconds:.1f} s ({rate:.1f}/s)"
        f" beside {CLIENTS} clients of another tenant"
        "\n\n first token, ms     turns     p50     p95"
    )
    for name, chats in (
        ("alone, before", figures.before),
        ("beside the batch", figures.beside),
        ("alone, after", figures.after),
    ):
        p50, p95 = (1_000 * seconds for seconds in chats.first_token)
        print(f" {name:17s} {chats.turns:7d} {p50:7.1f} {p95:7.1f}")
    ratios = [
        figures.beside.first_token[at] * 2 / (figures.before.first_token[at] + figures.after.first_token[at])
        for at in (0, 1)
    ]
    print(
        f"beside it takes {ratios[0]:.2f} times (p95: {ratios[1]:.2f}) what it takes alone;"
        f" the bar is {BAR:g}"
    )
    return 0 if ratios[0] <= BAR else 1
