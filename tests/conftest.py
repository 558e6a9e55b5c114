"""What every test gets: caches without yesterday's rows, and one profile for property tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from agents import selectors as agents
from core import aio
from core import selectors as core
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
    agents.agent_version.cache_clear()


@pytest.fixture(autouse=True)
def fresh_caches() -> Iterator[None]:
    forget_cached_rows()
    yield
    forget_cached_rows()


@pytest.fixture
def tenant(db: None) -> Tenant:
    """A tenant whose tier allows everything."""
    return make_tenant()


@pytest.fixture
def committed_tenant(transactional_db: None) -> Tenant:
    """A tenant that other connections see: for commits, threads and workers."""
    return make_tenant()


@pytest.fixture(scope="session", autouse=True)
def closed_providers() -> Iterator[None]:
    """The worker's loop keeps a session to model servers; a process would close it at its end."""
    yield
    aio.run(providers.close())
