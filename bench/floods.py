"""Floods at the front door: what they cost the web process, and what they are answered.

Ten thousand idle sockets are asked for at once; then bodies come that are too large, too deep or too rich.
Meanwhile somebody else asks whether the platform lives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.processes import Costs, ProcessFailed
from bench.stack import start
from nooble.embedded import discard

SOCKETS = 10_000
AT_ONCE = 100  # connects under way: who waits for 5 s for the handshake is sent away by the server
BOMBS = 25  # of each kind
BOMBERS = 8
SAMPLES = 50  # of the bystander, before a flood
MIB = 2**20
# The bars that these figures are held against.
MOST_MEMORY, MOST_GROWTH = 400, 20  # MB


def kinds() -> dict[str, bytes]:
    """What no request may be, each with a name."""
    return {
        "30 MB": b'{"message": "' + b"x" * (30 * MIB) + b'"}',
        "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
        "1,000,000 keys": b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}",
        "20,000 keys": b"{" + b",".join(b'"k%d":1' % number for number in range(20_000)) + b"}",
    }


@dataclass
class Bystander:
    """Somebody who asks again and again, and notes how long it takes."""

    session: aiohttp.ClientSession
    base_url: str
    seconds: list[float] = field(default_factory=list)

    async def ask(self) -> None:
        begun = time.perf_counter()
        async with self.session.get(f"{self.base_url}/health") as answer:
            answer.raise_for_status()
        self.seconds.append(time.perf_counter() - begun)

    async def ask_forever(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(0.02)

    def p95(self) -> float:
        """Of what was noted since the last call, in milliseconds."""
        noted, self.seconds = sorted(self.seconds), []
        return noted[int(len(noted) * 0.95)] * 1e3 if noted else float("nan")


def floods(arguments: argparse.Namespace) -> int:
    """Prints the figures; 0, or 1 where a bar was missed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Directly under /tmp: the paths of the engines' sockets are limited to about 100 bytes.
    home = Path(tempfile.mkdtemp(prefix="nooble-bench-", dir="/tmp"))
    with ExitStack() as exits:
        exits.callback(discard, home)
        try:
            started = start(exits, home)
        except ProcessFailed as error:
            print(f"a process did not start: {error}", file=sys.stderr)
            return 1
        costs = Costs(started.platform.pid, started.model.pid)
        return asyncio.run(_measure(started.demo, costs))


async def _measure(demo: dict[str, Any], costs: Costs) -> int:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        bystander = Bystander(session, demo["base_url"])
        for _ in range(SAMPLES):
            await bystander.ask()
        print(f"\nat rest: {_memory(costs):.0f} MB, the bystander's p95 {bystander.p95():.1f} ms")
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(bystander.ask_forever())
            most = await _sockets(session, demo, costs, bystander)
            growth = await _bombs(session, demo, costs, bystander)
            asking.cancel()
    return 0 if most < MOST_MEMORY and growth < MOST_GROWTH else 1


async def _sockets(
    session: aiohttp.ClientSession, demo: dict[str, Any], costs: Costs, bystander: Bystander
) -> float:
    """The web's memory, in MB, with all sockets open that it lets in."""
    url = f"{demo['base_url'].replace('http', 'ws', 1)}/ws/{demo['tenant_id']}/"
    gate = asyncio.Semaphore(AT_ONCE)
    async with AsyncExitStack() as opened:

        async def open_one() -> str:
            async with gate:
                try:
                    socket = await session.ws_connect(url + secrets.token_urlsafe(16))
                except aiohttp.WSServerHandshakeError as error:
                    return f"HTTP {error.status}"
                first = json.loads((await socket.receive()).data)
                if first["event"] == "connection_established":
                    listening = asyncio.create_task(_listen(socket))
                    opened.callback(listening.cancel)
                    return "open"
                await socket.receive()
                return f"{first['data']['type']}, closed {socket.close_code}"

        begun = time.monotonic()
        answers = Counter(await asyncio.gather(*(open_one() for _ in range(SOCKETS))))
        seconds, memory = time.monotonic() - begun, _memory(costs)
        print(f"\n{SOCKETS:,} sockets asked for in {seconds:.1f} s:")
        for answer, count in answers.most_common():
            print(f"  {count:7,}  {answer}")
        print(f"the web then has {memory:.0f} MB (bar: {MOST_MEMORY}), ", end="")
        print(f"the bystander's p95 was {bystander.p95():.1f} ms", flush=True)
    return memory


async def _listen(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Idle, but alive: the server's pings are answered by who reads."""
    async with socket:
        while (await socket.receive()).type is aiohttp.WSMsgType.TEXT:
            pass


async def _bombs(
    session: aiohttp.ClientSession, demo: dict[str, Any], costs: Costs, bystander: Bystander
) -> float:
    """By how many MB the web has grown after all of them; the first of each kind warms up."""
    url = f"{demo['base_url']}/api/v1/chat/message"
    headers = {"Content-Type": "application/json"}
    gate = asyncio.Semaphore(BOMBERS)

    async def throw(body: bytes) -> int:
        async with gate, session.post(url, data=body, headers=headers) as answer:
            await answer.read()
            return answer.status

    bombs = kinds()
    for body in bombs.values():
        await throw(body)
    before, growth = _memory(costs), 0.0
    bystander.p95()
    print(f"\n{BOMBS} bodies of each kind, {BOMBERS} at once:")
    for name, body in bombs.items():
        statuses = Counter(await asyncio.gather(*(throw(body) for _ in range(BOMBS))))
        growth = _memory(costs) - before
        told = ", ".join(f"{count} x {status}" for status, count in statuses.items())
        print(f"  {name:15} {told:12} web {growth:+.0f} MB, the bystander's p95 {bystander.p95():.1f} ms")
    print(f"the web has grown by {growth:.0f} MB (bar: {MOST_GROWTH})", flush=True)
    return growth


def _memory(costs: Costs) -> float:
    return costs.memory().get("web", 0) / 1e6
