"""The queues: our transport beside stock kombu's, fairness, caps, dead workers, idle cost.

Every figure is of this run; where two transports are compared, their measurements take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.callbacks import CAP, FLOOD, Callbacks, Latency, callbacks
from bench.processes import Process, ProcessFailed
from bench.stack import clean_environment
from bench.turns import TurnFailed
from core.queues.names import DOMAINS
from nooble.embedded import Engines, die_with_parent, discard
from nooble.env import ROOT

OURS = (3, 300, 3_000, 30_000, 100_000)
STOCK = (3, 300, 3_000)
STOCK_LAST = 30_000  # once only, and no longer than _STOCK_SECONDS: stock kombu needs minutes for more
REPEATS = 5
MESSAGES = 1_500  # published and consumed in each repeat

LEASED = 50
LEASED_BAR = 20.0  # seconds
IDLE_SECONDS = 10.0
KNOWN = 100_000  # tenants
WORKER_CAP = 7

_STOCK_SECONDS = 75.0
_CONSUME_SECONDS = 2.0  # of one repeat at most; the slow ones are timed, not finished
_PATIENCE = 60.0  # for a process's next line


class Child:
    """A `bench.consuming` process of ours, and its lines."""

    def __init__(self, scenario: str, url: str, *options: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.consuming", scenario, "--url", url, *map(str, options)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        self.pid = self._process.pid
        self._rest = b""

    def say(self, line: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def result(self, seconds: float = _PATIENCE) -> dict[str, Any] | None:
        """Its next line, or None when that takes too long. Raises ProcessFailed when it has ended."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                data = os.read(self._process.stdout.fileno(), 65_536)
                if not data:
                    raise ProcessFailed(f"a consumer ended with {self._process.wait()}")
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        result: dict[str, Any] = json.loads(line)
        return result

    def must_result(self) -> dict[str, Any]:
        result = self.result()
        if result is None:
            raise ProcessFailed(f"a consumer said nothing for {_PATIENCE:g} s")
        return result

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass
class Rates:
    """Messages a second of one transport and number of queues, a number each repeat."""

    published: list[float] = field(default_factory=list)
    consumed: list[float] = field(default_factory=list)
    subscribed: float = 0.0

    def add(self, result: dict[str, Any]) -> None:
        self.published.append(result["published"])
        self.consumed.append(result["consumed"])
        self.subscribed = self.subscribed or result["subscribed"]


@dataclass(frozen=True)
class Killed:
    """`seconds` from the death of a worker to the last of its messages leased again."""

    leased: int
    again: int
    leases: int
    seconds: float


class Bench:
    """One Valkey of its own, a database of it for each measurement."""

    def __init__(self, exits: ExitStack, home: Path) -> None:
        self._home = home
        self._exits = exits
        engines = Engines()
        exits.callback(engines.stop)
        self._url = engines.start(home, need_database=False).redis_url.removesuffix("?db=0")
        [valkey] = engines.running
        assert valkey.process is not None
        self._valkey = psutil.Process(valkey.process.pid)
        self._databases = iter(range(16))

    def database(self) -> str:
        """The URL of one that nobody has used."""
        return f"{self._url}?db={next(self._databases)}"

    @contextmanager
    def child(self, scenario: str, url: str, *options: object) -> Iterator[Child]:
        child = Child(scenario, url, *options)
        try:
            yield child
        finally:
            child.stop()

    def throughput(self) -> dict[tuple[str, int], Rates]:
        """All levels of both transports in turn, so that a slow moment of the machine is everybody's."""
        levels = [("ours", number) for number in OURS] + [("stock", number) for number in STOCK]
        rates = {level: Rates() for level in levels}
        with ExitStack() as exits:
            children = {level: exits.enter_context(self._consumer(*level)) for level in levels}
            for child in children.values():
                child.must_result()
            for _ in range(REPEATS):
                for level in random.sample(levels, len(levels)):
                    children[level].say(MESSAGES)
                    rates[level].add(children[level].must_result())
        return rates

    @contextmanager
    def _consumer(self, transport: str, queues: int) -> Iterator[Child]:
        stock = ("--stock",) if transport == "stock" else ()
        options = ("--queues", queues, "--spare", MESSAGES, "--seconds", _CONSUME_SECONDS)
        with self.child("throughput", self.database(), *options, *stock) as child:
            yield child

    def fairness(self) -> tuple[dict[str, Any], dict[str, Any]]:
        with self.child("fairness", self.database()) as child:
            return child.must_result(), child.must_result()

    def caps(self) -> tuple[int, float]:
        """Two workers and one tenant: the most that ran at once, and the average while there was more."""
        url = self.database()
        with self.child("capped", url) as one, self.child("capped", url) as two:
            one.must_result(), two.must_result()
            with self.child(
                "filling", url, "--domain", "agent", "--cap", WORKER_CAP, "--spare", 600
            ) as filler:
                filler.must_result()
            held = one.must_result()["held"] + two.must_result()["held"]
        return most_and_average([(since, until) for since, until in held])

    def killed(self) -> Killed:
        """A worker dies as soon as it has leased everything, so its leases have their full time to live."""
        url = self.database()
        with self.child("holding", url) as dying, self.child("filling", url, "--spare", LEASED) as filler:
            dying.must_result(), filler.must_result()
            leased: set[str] = set()
            while len(leased) < LEASED:
                leased = {task for task, _ in dying.must_result()["tasks"]}
            with self.child("holding", url) as heir:
                heir.must_result()
                killed_at = time.time()
                os.kill(dying.pid, signal.SIGKILL)
                tasks: list[Any] = []
                deadline = time.monotonic() + 2 * LEASED_BAR
                while len(tasks) < len(leased) and time.monotonic() < deadline:
                    tasks = (heir.result(1.0) or {"tasks": tasks})["tasks"]
                # Whatever comes twice would come now.
                tasks = (heir.result(2.0) or {"tasks": tasks})["tasks"]
        times = [at - killed_at for _, at in tasks]
        return Killed(
            len(leased), len({task for task, _ in tasks} & leased), len(tasks), max(times, default=0.0)
        )

    def last_and_killed(self) -> tuple[Rates | None, Killed]:
        """Stock kombu with many queues; None when it was not done in time. Beside it, what only waits."""
        with self._consumer("stock", STOCK_LAST) as child:
            child.must_result()
            child.say(200)
            killed = self.killed()
            result = child.result(_STOCK_SECONDS)
        if result is None:
            return None, killed
        rates = Rates()
        rates.add(result)
        return rates, killed

    def idle(self) -> tuple[float, float]:
        """CPU of a worker and of Valkey, in seconds a second, with every tenant known and nothing to do."""
        url = self.database()
        with self.child("filling", url, "--queues", KNOWN) as filler:
            filler.must_result()
        environment = clean_environment(self._home) | {
            "REDIS_URL": url,
            "DATABASE_URL": "postgresql://nobody@/nowhere?host=/nonexistent",
        }
        command = (sys.executable, "-W", "ignore", "-m", "celery", "-q", "-A", "celery_app", "worker")
        options = ("--loglevel", "INFO", "--without-gossip", "--without-mingle", "-Q", ",".join(DOMAINS))
        worker = Process((*command, *options), environment, self._home / "worker.log")
        self._exits.callback(worker.stop)
        deadline = time.monotonic() + _PATIENCE
        while " ready." not in worker.tail():
            if time.monotonic() > deadline:
                raise ProcessFailed(f"no worker\n{worker.tail()}")
            time.sleep(0.1)
        time.sleep(2.0)  # its threads have started
        processes = (psutil.Process(worker.pid), self._valkey)
        before = [_cpu(process) for process in processes]
        time.sleep(IDLE_SECONDS)
        spent = [
            (_cpu(process) - earlier) / IDLE_SECONDS
            for process, earlier in zip(processes, before, strict=True)
        ]
        worker.stop()
        return spent[0], spent[1]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def most_and_average(held: Sequence[tuple[float, float]]) -> tuple[int, float]:
    """How many intervals overlapped at most, and on average until the last of them began."""
    changes = sorted([(since, 1) for since, _ in held] + [(until, -1) for _, until in held])
    first, last = changes[0][0], max(since for since, _ in held)
    running = most = 0
    area, earlier = 0.0, first
    for at, change in changes:
        area += running * (min(at, last) - min(earlier, last))
        running, earlier = running + change, at
        most = max(most, running)
    return most, area / (last - first)


# --- printing ------------------------------------------------------------------------------------


def queues(arguments: argparse.Namespace) -> int:
    """Prints the tables of the queues; 0, or 1 where a bar was missed that does not depend on speed."""
    began = time.monotonic()
    missed = []
    # Directly under /tmp: the paths of the engines' sockets are limited to about 100 bytes.
    home = Path(tempfile.mkdtemp(prefix="nooble-bench-", dir="/tmp"))
    try:
        with ExitStack() as exits:
            exits.callback(discard, home)
            bench = Bench(exits, home)
            print("\nqueues: one consumer, prefetch 1, an ack each; messages/s, median of", REPEATS)
            rates = bench.throughput()
            last, killed = bench.last_and_killed()
            _print_rates(rates, last)
            missed += _print_fairness(*bench.fairness())
            missed += _print_caps(*bench.caps())
            missed += _print_killed(killed)
            _print_idle(*bench.idle())
        home = Path(tempfile.mkdtemp(prefix="nooble-bench-", dir="/tmp"))
        with ExitStack() as exits:
            exits.callback(discard, home)
            _print_callbacks(callbacks(home))
    except (ProcessFailed, TurnFailed) as error:
        print(f"nothing could be measured: {error}", file=sys.stderr)
        return 1
    for bar in missed:
        print(f"missed: {bar}", file=sys.stderr)
    print(f"the queues took {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


def _print_rates(rates: dict[tuple[str, int], Rates], last: Rates | None) -> None:
    def middle(values: list[float]) -> float:
        return statistics.median(values)

    print("  queues   ours consume  publish   stock consume  publish  subscribe, s   ours/stock")
    for number in OURS:
        ours = rates["ours", number]
        line = f" {number:7d} {middle(ours.consumed):14,.0f} {middle(ours.published):8,.0f}"
        stock = rates.get(("stock", number), last if number == STOCK_LAST else None)
        if stock is not None:
            line += (
                f" {middle(stock.consumed):15,.0f} {middle(stock.published):8,.0f} {stock.subscribed:13.2f}"
            )
            line += f" {middle(ours.consumed) / middle(stock.consumed):12.2f}"
        elif number == STOCK_LAST:
            line += f"  not subscribed within {_STOCK_SECONDS:.0f} s"
        print(line)
    flat = _ratio(rates["ours", OURS[-1]].consumed, rates["ours", OURS[0]].consumed)
    beside = _ratio(rates["ours", OURS[0]].consumed, rates["stock", OURS[0]].consumed)
    print(
        f"ours at {OURS[-1]:,} / at {OURS[0]}: {flat:.2f} (goal: at least 0.80);"
        f" ours / stock at {OURS[0]}: {beside:.2f} (goal: at least 1)",
        flush=True,
    )


def _ratio(these: list[float], those: list[float]) -> float:
    return statistics.median(these) / statistics.median(those)


def _print_fairness(flood: dict[str, Any], weights: dict[str, Any]) -> list[str]:
    positions, active = flood["positions"], flood["active"]
    ratio = weights["heavy"] / max(weights["light"], 1)
    print(
        f"\n20 tenants with 1 message each beside one with 10,000: dispatched {positions[0]}. to"
        f" {positions[-1]}. after their publish (bar: {active + 1})"
    )
    print(f"weights 4:1 over 1,000 dispatches: {ratio:.2f}:1 (bar: 10 %)", flush=True)
    missed = []
    if positions[-1] > active + 1:
        missed.append(f"a tenant with one message was dispatched {positions[-1]}.")
    if not 3.6 <= ratio <= 4.4:
        missed.append(f"weights 4:1 gave {ratio:.2f}:1")
    return missed


def _print_caps(most: int, average: float) -> list[str]:
    print(
        f"a cap of {WORKER_CAP} over two workers: at most {most} at once,"
        f" {average:.2f} on average while more waited",
        flush=True,
    )
    return [f"{most} ran at once with a cap of {WORKER_CAP}"] if most > WORKER_CAP else []


def _print_killed(killed: Killed) -> list[str]:
    print(
        f"kill -9 of a worker with {killed.leased} leases: {killed.again} leased again, by {killed.leases}"
        f" leases, the last after {killed.seconds:.1f} s (bar: {LEASED_BAR:.0f} s)",
        flush=True,
    )
    if killed.again < LEASED or killed.leases != LEASED or killed.seconds > LEASED_BAR:
        return ["the leases of a dead worker"]
    return []


def _print_idle(worker: float, valkey: float) -> None:
    print(
        f"idle with {KNOWN:,} known tenants: the worker {worker:.2%} of a core, Valkey {valkey:.2%}"
        f" (over {IDLE_SECONDS:.0f} s)",
        flush=True,
    )


def _print_callbacks(found: Callbacks) -> None:
    print(
        f"\nturns beside a flood: tenant A has {FLOOD:,} runs queued ({found.queued[0]:,} left at the"
        f" beginning, {found.queued[1]:,} at the end; {found.posts:.0f} POSTs/s), {CAP} of them run at once;"
        "\nms over the model's own time: POST to task_completed, and of it what follows the model's last byte"
        "\n                        turns   overhead p50     p95   callback p50     p95"
    )

    def line(name: str, latency: Latency, overhead: bool = True) -> None:
        first = (
            f"{latency.overhead[0] * 1e3:14.1f} {latency.overhead[1] * 1e3:7.1f}"
            if overhead
            else f"{'-':>14} {'-':>7}"
        )
        print(
            f" {name:22} {latency.turns:6d} {first} {latency.callback[0] * 1e3:14.1f}"
            f" {latency.callback[1] * 1e3:7.1f}"
        )

    line("B, nothing else", found.other_idle)
    line("B, in A's flood", found.other_flooded)
    line("A, nothing else", found.same_idle)
    # A run of the flood waits for those before it: that is what its cap is for.
    line("A, in its own flood", found.same_flooded, overhead=False)
    overhead = found.other_flooded.overhead[0] / found.other_idle.overhead[0]
    other = found.other_flooded.callback[0] / found.other_idle.callback[0]
    same = found.same_flooded.callback[0] / found.same_idle.callback[0]
    print(
        f"flooded / idle, p50: overhead of B {overhead:.2f},"
        f" callback of B {other:.2f}, callback of A {same:.2f}",
        flush=True,
    )
