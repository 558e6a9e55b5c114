"""One platform for all scenarios of a session, the seed, and where the lines go.

`make test` runs the short set. CHAOS=full (`make chaos`) runs every scenario at its full size and holds the
bars of time as well; CHAOS_SEED=n repeats a session's choices.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Any

import pytest

from tests.chaos import rig as rigs
from tests.chaos import whole_ledger
from tests.chaos.rig import Rig
from tests.chaos.scenario import Scenario, scenario, unjudged
from tests.chaos.sizes import FULL

SEED = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(10**9))

collect_ignore = [] if FULL else ["full"]

Begin = Callable[[str], AbstractAsyncContextManager[Scenario]]


def pytest_report_header() -> str:
    return f"chaos: CHAOS_SEED={SEED}"


@pytest.fixture(scope="session")
def rig(report: Callable[[dict[str, Any]], None]) -> Iterator[Rig]:
    """The ledger is looked at when everything has happened."""
    with ExitStack() as cleanup:
        running = rigs.start(cleanup)
        yield running
        asyncio.run(whole_ledger.check(running, report))


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Prints a scenario's line, whatever pytest captures."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def show(line: dict[str, Any]) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{json.dumps(line)}", flush=True)

    return show


@pytest.fixture
def begin(rig: Rig, report: Callable[[dict[str, Any]], None]) -> Begin:
    """`async with begin("name") as scenario:` a scenario that must leave the four numbers at 0."""
    return lambda name: scenario(name, rig, SEED, report)


@pytest.fixture
def begin_unjudged(rig: Rig, report: Callable[[dict[str, Any]], None]) -> Begin:
    """The same for a scenario that is meant to fail."""

    @asynccontextmanager
    async def begin(name: str) -> AsyncIterator[Scenario]:
        async with unjudged(name, rig, SEED, report) as running:
            yield running
        rig.unjudged |= running.names

    return begin


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the end of what the children printed."""
    outcome = yield
    running: Any = getattr(item, "funcargs", {}).get("rig")
    if outcome.failed and running is not None:
        outcome.sections.append(("the platform's logs", running.tail()))
    return outcome
