"""The processes that a measurement starts, and what they cost."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Any

import psutil

from nooble.embedded import die_with_parent
from nooble.env import ROOT

# Kinds of processes, told by their command lines; the first whose every word occurs names a process.
_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("web", ("daphne",)),
    ("beat", ("celery", "beat")),
    ("agents", ("celery", "worker", "-n agents@")),
    ("domains", ("celery", "worker")),
    ("postgres", ("postgres",)),
    ("valkey", ("valkey",)),
)
KINDS = tuple(name for name, _ in _KINDS)

_STOP_SECONDS = 60.0
_LOG_TAIL = 4_000  # bytes


class ProcessFailed(Exception):
    """A process that did not come up, with the end of its output."""


class Process:
    """A process of ours, in a session of its own so that only we end it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Should we be killed, it still ends as it would by its operator.
                preexec_fn=die_with_parent(Signals.SIGTERM),
            )
        self.pid = self._process.pid

    def wait_for(self, ready_file: Path, seconds: float) -> dict[str, Any]:
        """The JSON that the process writes when it is ready. Raises ProcessFailed."""
        deadline = time.monotonic() + seconds
        while not ready_file.exists():
            if self._process.poll() is not None:
                raise ProcessFailed(f"ended with {self._process.returncode}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"not ready within {seconds:g} s\n{self.tail()}")
            time.sleep(0.05)
        ready: dict[str, Any] = json.loads(ready_file.read_text())
        return ready

    def tail(self) -> str:
        """The end of what it printed."""
        return self._log.read_bytes()[-_LOG_TAIL:].decode(errors="replace")

    def stop(self) -> None:
        """End it as its operator would, and wait; its children are its own to end."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Costs:
    """CPU and memory of the platform's processes by kind, and of the two ends of the measurement."""

    def __init__(self, platform: int, model: int) -> None:
        self._platform = psutil.Process(platform)
        self._ends = {"load": psutil.Process(os.getpid()), "model": psutil.Process(model)}

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU so far, by kind; those of ended children are their parents'."""
        result = {name: _cpu(process) for name, process in self._ends.items()}
        for name, process in self._processes():
            result[name] = result.get(name, 0.0) + _cpu(process)
        return result

    def memory(self) -> dict[str, int]:
        """Resident bytes now, by kind."""
        result: dict[str, int] = {}
        for name, process in self._processes():
            try:
                result[name] = result.get(name, 0) + process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return result

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        found = []
        for process in self._platform.children(recursive=True):
            try:
                # PostgreSQL's children carry a title instead of a command line.
                words = f"{process.name()} {' '.join(process.cmdline())}"
            except psutil.NoSuchProcess:
                continue
            for name, marks in _KINDS:
                if all(mark in words for mark in marks):
                    found.append((name, process))
                    break
        return found


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
