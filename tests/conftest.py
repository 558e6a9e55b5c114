"""What every test gets: caches without yesterday's rows, and one profile for property tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from channels.layers import get_channel_layer
from hypothesis import HealthCheck, settings

from agents import selectors as agents
from core import aio, valkey
from core import selectors as core
from core.events import log
from core.models import Tenant
from execution.providers import registry as providers
from tests.factories import make_tenant

# Real services answer when they answer; what fails is printed so that it can be tried again.
settings.register_profile(
    "nooble",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("nooble")


def forget_cached_rows() -> None:
    """What a process does by itself within a second."""
    core._limits.clear()
    agents._live.clear()
    agents._names.clear()
    agents._names.clear()
    agents.agent_version.cache_clear()
    valkey._breaker._away_until = 0.0


@pytest.fixture(autouse=True)
def fresh_caches() -> Iterator[None]:
    forget_cached_rows()
    yield
    forget_cached_rows()


@pytest.fixture(autouse=True)
def lost_logs_count_from_their_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one goes on is then known to the test; `tests/core/events/test_log.py` has the real pace."""
    monkeypatch.setattr(log, "PACE", 0)


@pytest.fixture
def tenant(db: None) -> Tenant:
    """A tenant whose tier allows everything."""
    return make_tenant()


@pytest.fixture
def committed_tenant(transactional_db: None) -> Tenant:
    """A tenant that other connections see: for commits, threads and workers."""
    return make_tenant()


@pytest.fixture(scope="session", autouse=True)
def stopped_loop() -> Iterator[None]:
    """A worker's loop ends with its process; ours must not outlive the session's Valkey."""
    yield
    aio.run(_stop_everything())


async def _stop_everything() -> None:
    await providers.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await get_channel_layer().flush()
    await valkey.async_client().aclose(close_connection_pool=True)
