"""`python -m bench`: starts the platform and a fake model, measures, prints tables, stops all.

First turns, here; then the queues, in `bench.queues`; then a batch beside conversations, in `bench.batch`;
then floods, in `bench.floods`. `python -m bench turns` measures one of them.

The fake model's first token comes after 50 ms and 50 tokens follow each other 10 ms apart, so 50
clients can do 91 turns/s at most. Everything runs on one machine, the load too: compare ratios
within one run; two runs can differ by 30 %.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.batch import batch
from bench.fake_model import answer_text
from bench.floods import floods
from bench.processes import KINDS, Costs, ProcessFailed
from bench.queues import queues
from bench.stack import FIRST_TOKEN, INTERVAL, TOKENS, start
from bench.turns import Books, Direct, Level, Platform, TurnFailed, measure
from execution.providers import registry
from execution.providers.registry import Credentials, provider_for
from nooble.embedded import discard

MODEL = "fake"

# What the prototype of this path did on such a machine.
PROTOTYPE_RATES = {10: 16.3, 50: 65.0, 100: 88.0, 200: 99.0}
PROTOTYPE_FIRST_TOKEN = 0.009  # seconds over the model, 1 client
PROTOTYPE_CPU = 0.015  # seconds a turn
PROTOTYPE_MEMORY = 245  # MB


@dataclass(frozen=True)
class Result:
    """One number of clients: the platform, and the model without it."""

    ours: Level
    direct: Level


def main() -> int:
    arguments = _arguments()
    # SIGTERM takes the way of Ctrl-C, so that what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    status = 0
    try:
        for part in arguments.parts or PARTS:
            status = max(status, PARTS[part](arguments))
    except KeyboardInterrupt:
        return 130
    print(f"\nthe command took {time.monotonic() - began:.0f} s")
    return status


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure turns of the platform, its queues, and a batch."
    )
    parser.add_argument(
        "parts", nargs="*", metavar="turns | queues | batch | floods", help="what to measure (all)"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 50, 100, 200], metavar="N")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time for each number of clients")
    parser.add_argument("--items", type=int, default=1_000, help="items of the batch")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before that")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"no such part: {part}")
    return arguments


def turns(arguments: argparse.Namespace) -> int:
    """Prints the table of turns; 0, or 1 where some failed."""
    began = time.monotonic()
    # Directly under /tmp: the paths of the engines' sockets are limited to about 100 bytes.
    home = Path(tempfile.mkdtemp(prefix="nooble-bench-", dir="/tmp"))
    with ExitStack() as exits:
        exits.callback(discard, home)
        try:
            started = start(exits, home)
            print(f"the platform was ready after {time.monotonic() - began:.1f} s", flush=True)
            costs = Costs(started.platform.pid, started.model.pid)
            results = asyncio.run(_measure(arguments, started.model_url, started.demo, costs))
        except ProcessFailed as error:
            print(f"a process did not start: {error}", file=sys.stderr)
            return 1
        except TurnFailed as error:
            print(f"nothing could be measured: {error}\n{started.platform.tail()}", file=sys.stderr)
            return 1
        _print_table(results)
        failures = [
            failure for result in results for failure in result.ours.failures + result.direct.failures
        ]
        if failures:
            print(f"{len(failures)} turns failed, the first: {failures[0]}", file=sys.stderr)
            print(started.platform.tail(), file=sys.stderr)
    return 1 if failures else 0


async def _measure(
    arguments: argparse.Namespace, model_url: str, demo: dict[str, Any], costs: Costs
) -> list[Result]:
    expected = answer_text(TOKENS)
    answer_seconds = FIRST_TOKEN + INTERVAL * TOKENS
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session:
        books = Books(session, model_url, INTERVAL)
        direct = Direct(provider_for("openai", Credentials(model_url, "fake")), MODEL, expected)
        platform = Platform(session, demo["base_url"], demo["tenant_id"], demo["api_key"], expected)
        await platform.make_agent(MODEL)
        results = []
        try:
            for clients in arguments.clients:
                without = await measure(
                    direct.turn,
                    clients,
                    costs=costs,
                    books=books,
                    warm_up=answer_seconds,
                    seconds=min(arguments.seconds, 3.0),
                    spread=answer_seconds,
                )
                ours = await measure(
                    platform.turn,
                    clients,
                    costs=costs,
                    books=books,
                    warm_up=arguments.warm_up,
                    seconds=arguments.seconds,
                    spread=answer_seconds,
                )
                results.append(Result(ours, without))
                print(f"{clients} clients: {ours.turns} turns, {len(ours.failures)} failed", flush=True)
        finally:
            await registry.close()
    return results


def _print_table(results: list[Result]) -> None:
    base = results[0].direct.first_token[0]
    print(
        "\n           turns/s               first token, ms           token delay, ms  frames"
        "\n clients   ours  proto  direct    p50    p95  over model      p50    p95    a turn"
    )
    for result in results:
        ours = result.ours
        proto = PROTOTYPE_RATES.get(ours.clients)
        print(
            f" {ours.clients:7d} {ours.rate:6.1f} {proto or '-':>6} {result.direct.rate:7.1f}"
            f" {ours.first_token[0] * 1e3:6.1f} {ours.first_token[1] * 1e3:6.1f}"
            f" {(ours.first_token[0] - base) * 1e3:11.1f}"
            f" {ours.token_delay[0] * 1e3:8.1f} {ours.token_delay[1] * 1e3:6.1f} {ours.frames:9.1f}"
        )
    print(
        f"(direct to the model, 1 client: {base * 1e3:.1f} ms to the first token;"
        f" the prototype was {PROTOTYPE_FIRST_TOKEN * 1e3:.0f} ms over it)"
    )
    print(f"\n           CPU, ms a turn{'':46}{'the ends':>14}   memory, MB")
    names = " ".join(f"{name:>8}" for name in KINDS)
    print(f" clients  {names}      sum     load  model     web  agents domains")
    for result in results:
        ours = result.ours
        cpu = " ".join(f"{ours.cpu.get(name, 0.0) * 1e3:8.2f}" for name in KINDS)
        total = sum(ours.cpu.get(name, 0.0) for name in KINDS)
        memory = " ".join(f"{ours.memory.get(name, 0) / 1e6:7.0f}" for name in ("web", "agents", "domains"))
        print(
            f" {ours.clients:7d}  {cpu} {total * 1e3:8.2f}  {ours.cpu.get('load', 0.0) * 1e3:7.2f}"
            f" {ours.cpu.get('model', 0.0) * 1e3:6.2f} {memory}"
        )
    print(f"(the prototype: {PROTOTYPE_CPU * 1e3:.0f} ms a turn, {PROTOTYPE_MEMORY} MB for web and worker)")


PARTS: dict[str, Callable[[argparse.Namespace], int]] = {
    "turns": turns,
    "queues": queues,
    "batch": batch,
    "floods": floods,
}


if __name__ == "__main__":
    sys.exit(main())
