"""Processes that end without a word."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.conftest import Begin
from tests.chaos.rig import Rig
from tests.chaos.scenario import Run, every, percentiles
from tests.chaos.sizes import bar, sized

# Seconds: the longest that a dead worker's runs wait for the next one.
TAKE_OVER = 18.0


def restarts(runs: list[Run], since: float) -> list[float]:
    """Seconds from `since` to the first token of each run's second attempt."""
    return [run.heard.moments["token 2"] - since for run in runs if "token 2" in run.heard.moments]


async def test_workers_that_are_killed_again_and_again_lose_nothing(begin: Begin, rig: Rig) -> None:
    """K1: 250 tasks while a random worker is killed every 2-4 s for 40 s.

    All have ended 60 s after the last kill, and none is taken for poison.
    """
    async with begin("K1 kills") as scenario:
        scenario.calls_cut = True
        agent_id = await scenario.agent(tokens=30, interval=0.05)
        count, seconds = sized(60, 250), sized(12, 40)
        chance = scenario.chance
        kills = 0

        async def kill() -> None:
            nonlocal kills
            while True:
                await asyncio.sleep(chance.uniform(2, 4))
                rig.kill(chance.choice(["agents-1", "agents-2", "domains-1"]))
                kills += 1

        killing = asyncio.create_task(kill())
        while len(scenario.runs) < count:
            run = await scenario.watched(agent_id)
            if chance.random() < 0.1:
                # A session's questions are answered one after the other.
                for _ in range(2):
                    await scenario.ask(agent_id, run.session)
            await asyncio.sleep(chance.uniform(0, 2 * seconds / count))
        killing.cancel()
        scenario.figures["kills"] = kills
        scenario.figures["last_end"] = round(await scenario.finished(120), 1)
        ends = [run.heard.moments.get("last", 0.0) - run.accepted_at for run in scenario.runs]
        scenario.figures |= percentiles(ends)
    bar(scenario.figures["last_end"] <= 60, f"{scenario.figures}")


async def test_all_workers_killed_with_20_runs_mid_stream(begin: Begin, rig: Rig) -> None:
    """All 20 finish on the workers that are started in their place: one answer each."""
    async with begin("K2 all workers") as scenario:
        scenario.calls_cut = True
        agent_id = await scenario.agent(tokens=100, interval=0.04)
        runs = [await scenario.watched(agent_id) for _ in range(20)]
        await scenario.streaming(runs)
        killed_at = time.monotonic()
        rig.kill("agents-1", "agents-2", "domains-1")
        await scenario.finished(60)
        scenario.figures |= percentiles(restarts(runs, killed_at))
    bar(scenario.figures["p95"] <= TAKE_OVER + 5, f"{scenario.figures}")


async def test_a_web_that_is_killed_loses_no_event_of_its_sockets(begin: Begin, rig: Rig) -> None:
    """R2: 500 open sockets, 100 of them streaming: all are back within 15 s, with no gap and no repeat."""
    async with begin("R2 web killed") as scenario:
        agent_id = await scenario.agent(tokens=200, interval=0.04)
        count = sized(50, 500)
        jitter = float(sized(2, 5))
        sessions = await asyncio.gather(
            *(scenario.open(scenario.session(jitter=jitter)) for _ in range(count))
        )
        runs = [await scenario.ask(agent_id, session) for session in sessions[: count // 5]]
        await scenario.streaming(runs)
        rig.kill("web-1")
        await every(lambda: all(session.back for session in sessions), 60)
        scenario.figures["back"] = sum(bool(session.back) for session in sessions)
        scenario.figures |= percentiles(session.back[0] for session in sessions if session.back)
        scenario.figures["http_errors"] = sum(
            session.counts["refused: WSServerHandshakeError"] for session in sessions
        )
        await scenario.finished(60)
    assert scenario.figures["back"] == count
    assert scenario.figures["http_errors"] == 0
    bar(max(session.back[0] for session in sessions) <= 15, f"{scenario.figures}")
