"""The session's own PostgreSQL and Valkey, started before Django is imported.

The root `conftest.py` calls `start`. Where DATABASE_URL or REDIS_URL is set, that service is used instead.
Everything lies in a temporary NOOBLE_HOME that is deleted at the end.
"""

from __future__ import annotations

import atexit
import base64
import fcntl
import os
import tempfile
import time
from pathlib import Path

from nooble.embedded import Engines, PostgreSQL, discard

# Directly under /tmp, whatever TMPDIR says: socket paths are limited to about 100 bytes.
HOMES = Path("/tmp")
PREFIX = "nooble-test-"
ABANDONED_SECONDS = 3600

# What `start` has said in the environment of where Django and the engines are.
_said: set[str] = set()

# What could make a test behave differently here than there, or reach out and spend money.
UNWANTED = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "GROQ_API_KEY",
    "GROQ_BASE_URL",
    "ALLOWED_HOSTS",
    "NOOBLE_DEV_PUBLIC",
    "ORCHESTRATOR_WS_URL",
)


class Database(PostgreSQL):
    """Nothing in it outlives the machine: no commit waits for the disk. A killed server loses nothing."""

    def command(self) -> list[str]:
        return [*super().command(), "-c", "fsync=off"]


def start() -> None:
    """Start what is needed, say so in the environment, and stop it when this process ends."""
    _discard_abandoned_homes()
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=HOMES))
    engines = Engines()
    engines.database = Database

    def close() -> None:
        engines.stop()
        discard(home)

    atexit.register(close)
    for name in UNWANTED:
        os.environ.pop(name, None)
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "nooble.settings",
        "NOOBLE_ENV": "test",
        "NOOBLE_HOME": str(home),
        "SECRET_KEY": "only-for-tests-" * 4,
        "ENCRYPTION_KEYS": base64.urlsafe_b64encode(bytes(range(32))).decode(),
        "SERVICE_TOKEN": "only-for-tests-service-token",
        "NOOBLE_OUTBOUND_ALLOW": "127.0.0.1/32",
    }
    has_database = bool(os.environ.get("DATABASE_URL"))
    has_redis = bool(os.environ.get("REDIS_URL") or os.environ.get("ORCHESTRATOR_REDIS_URL"))
    services = engines.start(home, need_database=not has_database, need_redis=not has_redis)
    _said.add("DJANGO_SETTINGS_MODULE")
    if not has_database:
        # The owner's, since pytest-django creates the test database with it.
        os.environ["DATABASE_URL"] = services.database_owner_url
        _said.add("DATABASE_URL")
    if not has_redis:
        os.environ["REDIS_URL"] = services.redis_url
        _said.add("REDIS_URL")


def hand_down_nothing() -> None:
    """The session's workers (pytest-xdist) start engines of their own, as if they were alone.

    In a shared Valkey the processes that one's tests start would take what waits for another's. With the
    settings named in their environment, Django would read it before they have started anything.
    """
    for name in _said:
        del os.environ[name]


def _discard_abandoned_homes() -> None:
    """Deletes what killed sessions left behind: their lock is free, their engines are gone."""
    for lock in HOMES.glob(f"{PREFIX}*/lock"):
        try:
            # A test of a session beside us may be between a stop and a start.
            if time.time() - lock.stat().st_mtime < ABANDONED_SECONDS:
                continue
            with open(lock, "rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                discard(lock.parent)
        except OSError:
            continue  # in use, or another user's
