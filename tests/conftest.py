"""What every test gets: caches without yesterday's rows, and one profile for property tests."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from threading import Thread
from typing import Any

import pytest
from channels.layers import get_channel_layer
from django.test.client import ClientHandler
from hypothesis import HealthCheck, settings

from agents import selectors as agents
from core import aio, outbound, prices, ratelimits, valkey
from core import selectors as core
from core.broker import backlog
from core.events import log
from core.models import Tenant
from core.tenancy.scope import ALL_TENANTS, NO_TENANT, behind, current_wall
from execution import credentials
from execution.providers import registry as providers
from tests.factories import make_tenant

# Real services answer when they answer. The same tries every time, so that a change is judged by what it
# changes; `make fuzz` looks for new ones, and prints what fails so that it can be tried again.
settings.register_profile(
    "nooble",
    deadline=None,
    derandomize=os.environ.get("FUZZ") != "full",
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("nooble")


def forget_cached_rows() -> None:
    """What a process does by itself within a second."""
    core._limits.clear()
    prices._lists.clear()
    core._signing.clear()
    credentials._own.clear()
    agents._live.clear()
    agents._names.clear()
    agents.agent_version.cache_clear()
    valkey._breaker._away_until = 0.0
    backlog._heard.clear()


@pytest.fixture(autouse=True)
def fresh_caches() -> Iterator[None]:
    forget_cached_rows()
    yield
    forget_cached_rows()


@pytest.fixture(autouse=True)
def counts_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests ask from one address: what one of them was counted is none of the others'."""
    counts = f"{ratelimits.ROOT}:{secrets.token_hex(4)}"
    monkeypatch.setattr(ratelimits._counters().storage, "key_prefix", counts)


@pytest.fixture(autouse=True)
def lost_logs_count_from_their_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one goes on is then known to the test; `tests/core/events/test_log.py` has the real pace."""
    monkeypatch.setattr(log, "PACE", 0)


@pytest.fixture(autouse=True)
def tests_see_all_tenants() -> Iterator[None]:
    """A test makes the rows of many tenants and looks at them; what it asks for begins without any."""
    with behind(ALL_TENANTS):
        yield


@pytest.fixture(autouse=True)
def threads_of_a_test_see_all_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the test itself starts, and no others."""
    submit, run = ThreadPoolExecutor.submit, Thread.run

    def hand_in(pool: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return submit(pool, _within(function), *args, **kwargs)

    def start(thread: Any) -> None:
        thread.run = _within(partial(run, thread) if type(thread).run is run else thread.run)
        begin(thread)

    begin = Thread.start
    monkeypatch.setattr(ThreadPoolExecutor, "submit", hand_in)
    monkeypatch.setattr(Thread, "start", start)


def _within(function: Any) -> Any:
    """The function as a test has it that sees all tenants; anybody else's is as it was."""
    frame: Any = sys._getframe(2)
    while frame.f_globals["__name__"].startswith("concurrent."):
        frame = frame.f_back
    if current_wall() != ALL_TENANTS or not frame.f_globals["__name__"].startswith("tests."):
        return function

    @wraps(function)
    def within(*args: Any, **kwargs: Any) -> Any:
        with behind(ALL_TENANTS):
            return function(*args, **kwargs)

    return within


@pytest.fixture(autouse=True)
def requests_begin_without_a_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a thread of the web, also where a test's own thread answers them."""
    get_response = ClientHandler.get_response

    def begin(handler: ClientHandler, request: Any) -> Any:
        with behind(NO_TENANT):
            return get_response(handler, request)

    monkeypatch.setattr(ClientHandler, "get_response", begin)


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
    await outbound.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await get_channel_layer().flush()
    await valkey.async_client().aclose(close_connection_pool=True)
