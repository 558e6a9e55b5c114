"""The session's own PostgreSQL and Valkey, started before Django is imported.

Loaded by `-p tests.engines`. Where DATABASE_URL or REDIS_URL is set, that service is used instead.
Everything lies in a temporary NOOBLE_HOME that is deleted at the end.
"""

from __future__ import annotations

import base64
import fcntl
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from nooble.embedded import Engines, discard

# Directly under /tmp, whatever TMPDIR says: socket paths are limited to about 100 bytes.
HOMES = Path("/tmp")
PREFIX = "nooble-test-"

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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    """A wrapper, since pytest-django's `tryfirst` hook, which imports the settings, would run before ours."""
    _discard_abandoned_homes()
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=HOMES))
    engines = Engines()

    def close() -> None:
        engines.stop()
        discard(home)

    early_config.add_cleanup(close)
    for name in UNWANTED:
        os.environ.pop(name, None)
    os.environ |= {
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
    if not has_database:
        # The owner's, since pytest-django creates the test database with it.
        os.environ["DATABASE_URL"] = services.database_owner_url
    if not has_redis:
        os.environ["REDIS_URL"] = services.redis_url
    yield


def _discard_abandoned_homes() -> None:
    """Deletes what sessions left behind that were killed: their lock is free, their engines are gone."""
    for lock in HOMES.glob(f"{PREFIX}*/lock"):
        try:
            with open(lock, "rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                discard(lock.parent)
        except OSError:
            continue  # in use, or another user's
