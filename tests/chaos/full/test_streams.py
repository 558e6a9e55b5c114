"""Clients that are cut off, come late, or come all at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.chaos.conftest import Begin
from tests.chaos.rig import Rig
from tests.chaos.scenario import Scenario, every, percentiles
from tests.chaos.sizes import FULL, bar, sized


async def test_streams_that_are_cut_three_times_each_miss_nothing(begin: Begin) -> None:
    """R1: 200 streams, each cut at a random event 3 times; every text is whole, every order exact."""
    async with begin("R1 cuts") as scenario:
        agent_id = await scenario.agent(tokens=60, interval=0.03)

        async def one() -> None:
            session = scenario.session()
            cuts = [session.chance.randint(1, 12) for _ in range(3)]
            session.cut_after = lambda: cuts.pop() if cuts else None
            await scenario.ask(agent_id, await scenario.open(session))

        await asyncio.gather(*(one() for _ in range(sized(30, 200))))
        await scenario.finished(60)
        scenario.figures["cuts"] = sum(session.counts["cut"] for session in scenario.sessions)
        scenario.figures |= percentiles(moment for session in scenario.sessions for moment in session.back)
    # Where frames grow under load, an answer can end before its last cut.
    assert scenario.figures["cuts"] > 2.5 * len(scenario.runs)


async def test_a_socket_that_is_dropped_20_times_in_one_answer_misses_nothing(begin: Begin) -> None:
    """The client's text equals the stored text."""
    async with begin("20 drops") as scenario:
        agent_id = await scenario.agent(tokens=200, interval=0.02)
        session = scenario.session(jitter=0.05)
        drops = [session.chance.randint(1, 3) for _ in range(20)]
        session.cut_after = lambda: drops.pop() if drops else None
        await scenario.ask(agent_id, await scenario.open(session))
        await scenario.finished(60)
        scenario.figures["cuts"] = session.counts["cut"]
    assert scenario.figures["cuts"] == 20


async def test_500_sockets_connect_at_once_to_a_web_that_has_just_started(begin: Begin, rig: Rig) -> None:
    """R3: 500 of 500, the 95th of 100 within 2 s; and each of them hears its own answer afterwards."""
    async with begin("R3 connects") as scenario:
        await rig.restart(["web-1"])
        agent_id = await scenario.agent(tokens=3)
        moments: list[float] = []

        async def one() -> None:
            begun = time.monotonic()
            await scenario.open(scenario.session())
            moments.append(time.monotonic() - begun)

        await asyncio.gather(*(one() for _ in range(500)))
        scenario.figures |= percentiles(moments)
        scenario.figures["refused"] = sum(
            count
            for session in scenario.sessions
            for name, count in session.counts.items()
            if name.startswith("refused")
        )
        for session in scenario.chance.sample(scenario.sessions, sized(50, 500)):
            await scenario.ask(agent_id, session)
        await scenario.finished(60)
    assert scenario.figures["refused"] == 0
    bar(scenario.figures["p95"] <= 2.0, f"{scenario.figures}")


async def test_three_sockets_of_one_session_show_the_same(begin: Begin) -> None:
    """R8: two from the start, one that joins in the middle and reads from the beginning."""
    async with begin("R8 three sockets") as scenario:
        agent_id = await scenario.agent(tokens=60, interval=0.03)
        first = await scenario.open(scenario.session())
        second = await scenario.open(scenario.session(session_id=first.session_id))
        run = await scenario.ask(agent_id, first)
        await every(lambda: len(run.heard.text) > 40, 30)
        late = await scenario.open(scenario.session(session_id=first.session_id, token=run.token, cursor=0))
        await asyncio.gather(*(session.task(run.task_id).ended.wait() for session in (first, second, late)))
    assert first.raw == second.raw == late.raw


async def miss_hints(scenario: Scenario, share: str, **alteration: str) -> None:
    """Answers, two on each socket, of whose hints the web misses a share."""
    async with scenario.rig.altered(["web-1"], chaos_deaf=share, **alteration):
        agent_id = await scenario.agent(tokens=40, interval=0.03)
        for _ in range(2):
            sessions = scenario.sessions or [
                await scenario.open(scenario.session()) for _ in range(sized(10, 50))
            ]
            await asyncio.gather(*(scenario.ask(agent_id, session) for session in sessions))
            await scenario.finished(20)


@pytest.mark.parametrize("share", ["0.33", "1"] if FULL else ["0.33"])
async def test_sockets_that_miss_hints_miss_no_event(begin: Begin, share: str) -> None:
    """Pub/sub is at most once: gaps are filled from the log, a lost last event is found by its tail."""
    async with begin(f"hints lost: {share}") as scenario:
        await miss_hints(scenario, share)
