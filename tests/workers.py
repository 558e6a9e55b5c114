"""The platform's own worker processes, on the test's database and the session's Valkey."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL, SIGTERM
from urllib.parse import urlsplit

from django.db import connection

from nooble.embedded import die_with_parent
from nooble.env import ROOT
from tests.core.broker.server import eventually

APP = "tests.worker_app"


class Worker:
    """`celery worker` as a person starts it; `drain` is how long it goes on after SIGTERM, in seconds."""

    def __init__(self, log: Path, *, domains: str = "agent", drain: float = 15.0, **more: str) -> None:
        self._log = log
        url = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{connection.settings_dict['NAME']}")
        environment = os.environ | {
            "DATABASE_URL": url.geturl(),
            "TEST_DRAIN_SECONDS": str(drain),
            "LOG_LEVEL": "INFO",
            **more,
        }
        words = ["worker", "-n", f"{log.stem}@here", "-Q", domains, "-c", "8", "--loglevel=INFO"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", APP, *words],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent(SIGKILL),
            )

    def ready(self) -> None:
        eventually(lambda: b" ready." in self._log.read_bytes() or self._process.poll() is not None, 60)
        assert self._process.poll() is None, self.printed()

    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    def ask_to_end(self) -> None:
        self._process.send_signal(SIGTERM)

    def ended(self, seconds: float = 30) -> int:
        """The exit status."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
