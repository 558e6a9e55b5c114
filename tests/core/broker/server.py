"""A Valkey of the test's own, that it may kill and start again on the same socket and data."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from signal import Signals

import redis

from nooble.embedded import Valkey, die_with_parent


def eventually(holds: Callable[[], object], seconds: float = 20) -> None:
    """Returns as soon as it holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


class Server:
    """Keeps its data over a kill, as the platform's own does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "valkey.sock"
        self.url = f"unix://{self.socket}?db=0"
        (directory / "log").mkdir()
        self._binary = Valkey(directory, directory, "test").command()[0]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self.directory),
            "appendonly": "yes",
            "save": "",
            "loglevel": "warning",
        }
        command = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [self._binary, *command], preexec_fn=die_with_parent(Signals.SIGKILL), stdout=subprocess.DEVNULL
        )
        eventually(self._answers)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.url) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False
