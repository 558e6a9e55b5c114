"""Each guard taken out once: a scenario that does not notice proves nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.chaos.conftest import Begin
from tests.chaos.full.test_streams import miss_hints
from tests.chaos.full.test_workers import two_at_once
from tests.chaos.rig import USUAL, Rig
from tests.chaos.scenario import Scenario
from tests.chaos.test_races import ask_50_times_at_once, deliver_again, race_cancels

WORKERS = tuple(name for name in USUAL if name.startswith(("agents", "domains")))

Play = Callable[[Scenario, Rig], Awaitable[object]]


async def zombies(scenario: Scenario, rig: Rig) -> None:
    await two_at_once(scenario, rig)


async def duplicates(scenario: Scenario, rig: Rig) -> None:
    await deliver_again(scenario, 20)


async def cancels(scenario: Scenario, rig: Rig) -> None:
    await race_cancels(scenario, 30)


async def one_key(scenario: Scenario, rig: Rig) -> None:
    await ask_50_times_at_once(scenario)


async def whole_answers(scenario: Scenario, rig: Rig) -> None:
    agent_id = await scenario.agent(tokens=5)
    for _ in range(3):
        await scenario.watched(agent_id)
    await scenario.finished(30)


@pytest.mark.parametrize(
    ("guard", "play", "names"),
    [
        ("the row's fence", zombies, WORKERS),
        ("the log's fence", zombies, WORKERS),
        ("the claim's compare-and-set", duplicates, WORKERS),
        ("settle's compare-and-set", cancels, WORKERS),
        ("idempotency", one_key, ("web-1",)),
        ("the ledger's settling", whole_answers, WORKERS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_without_this_guard_a_scenario_fails(
    begin_unjudged: Begin, rig: Rig, guard: str, play: Play, names: tuple[str, ...]
) -> None:
    """The same play that leaves the four numbers at 0 with the guard does not without it."""
    async with begin_unjudged(f"without {guard}") as scenario, rig.altered(names, chaos_without=guard):
        await play(scenario, rig)
    assert scenario.troubles()


@pytest.mark.parametrize(("guard", "share"), [("gap fill", "0.33"), ("the tail check", "1")])
async def test_without_this_guard_missed_hints_are_missed_events(
    begin_unjudged: Begin, guard: str, share: str
) -> None:
    """Without a hint at all only the look at the tails tells a socket of anything."""
    async with begin_unjudged(f"without {guard}") as scenario:
        await miss_hints(scenario, share, chaos_without=guard)
    assert scenario.gaps or scenario.lost
