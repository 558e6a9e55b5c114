"""Workers that die of one task, stand still past their lease, or are asked to go."""

from __future__ import annotations

import asyncio
import functools
import time
from signal import Signals

from tests.chaos.conftest import Begin
from tests.chaos.rig import Rig
from tests.chaos.scenario import Run, Scenario, every, percentiles
from tests.chaos.sizes import bar
from tests.chaos.test_kills import TAKE_OVER, restarts

LEASE = 15.0  # seconds
CRASH_WAITS = (0.0, 2.0, 8.0, 30.0)  # seconds, after the first crash, the second ...

EVENTS = "SELECT attempt, crashes, error->>'type' FROM core_task WHERE id = %s"


async def streaming_on_one(
    scenario: Scenario, rig: Rig, count: int, tokens: int, interval: float = 0.04
) -> list[Run]:
    """So many runs mid-stream, all of them in `agents-1`; `agents-2` is ready to go on with them."""
    rig.rest("agents-2")
    agent_id = await scenario.agent(tokens=tokens, interval=interval)
    runs = [await scenario.watched(agent_id) for _ in range(count)]
    await scenario.streaming(runs)
    await rig.wake("agents-2")
    return runs


async def test_a_worker_that_is_killed_in_the_middle_of_answers_is_followed_by_another(
    begin: Begin, rig: Rig
) -> None:
    """K2: from the kill to the first token of the next attempt, p95 <= lease 15 s + 3 s."""
    async with begin("K2 one worker") as scenario:
        scenario.calls_cut = True
        runs = await streaming_on_one(scenario, rig, 20, tokens=150)
        killed_at = time.monotonic()
        rig.kill("agents-1")
        await scenario.finished(60)
        scenario.figures |= percentiles(restarts(runs, killed_at))
        starts = [run.heard.moments.keys() & {"started 1", "started 2", "started 3"} for run in runs]
    assert starts == [{"started 1", "started 2"}] * len(runs)
    bar(scenario.figures["p95"] <= TAKE_OVER, f"{scenario.figures}")


async def test_a_task_that_kills_its_worker_each_time_is_given_up(begin: Begin, rig: Rig) -> None:
    """K5: exactly 5 crashes, after waits of 0, 2, 8 and 30 s, then `failed` (Poison); others go on."""
    async with begin("K5 poison") as scenario:
        scenario.calls_cut = True
        poison = await scenario.watched(await scenario.agent(tokens=10_000), ending=("failed",))
        healthy = await scenario.agent(tokens=5)
        moments = poison.heard.moments
        killed_at: list[float] = []
        for attempt in range(1, 6):
            await every(functools.partial(moments.__contains__, f"token {attempt}"), 90)
            rig.kill("agents-1", "agents-2")
            killed_at.append(time.monotonic())
            await rig.wake("agents-1", "agents-2")
            others = [await scenario.watched(healthy) for _ in range(5)]
            await scenario.finished(10, others)
            assert all(run.heard.last == "task_completed" for run in others)
        await scenario.finished(40)
        waits = [moments[f"started {number}"] - killed_at[number - 2] for number in range(2, 6)]
        scenario.figures["waits"] = [round(wait, 1) for wait in waits]
        ((attempt, crashes, error_type),) = rig.rows(EVENTS, poison.task_id)
    assert (crashes, error_type) == (5, "Poison")
    assert attempt in (5, 6)
    assert poison.heard.last == "task_failed"
    for wait, due in zip(waits, CRASH_WAITS, strict=True):
        assert wait >= due
        bar(wait <= LEASE + due + 6, f"{scenario.figures}")


async def test_a_worker_that_stands_still_past_its_lease_can_write_nothing(begin: Begin, rig: Rig) -> None:
    """K6: SIGSTOP until 30 s past the lease, then SIGCONT: no second end, no event of the old attempt."""
    async with begin("K6 zombie") as scenario:
        scenario.calls_cut = True
        runs = await streaming_on_one(scenario, rig, 10, tokens=200, interval=0.04)
        stopped_at = time.monotonic()
        rig.children["agents-1"].send(Signals.SIGSTOP)
        await scenario.finished(LEASE + 30)
        scenario.figures |= percentiles(
            run.heard.moments["token 2"] - stopped_at for run in runs if "token 2" in run.heard.moments
        )
        await asyncio.sleep(max(0.0, stopped_at + LEASE + 30 - time.monotonic()))
        rig.children["agents-1"].send(Signals.SIGCONT)
        # What the zombie has left of its streams takes a moment; a new run in it shows that it is well again.
        await asyncio.sleep(5)
        rig.rest("agents-2")
        again = await scenario.watched(await scenario.agent(tokens=3))
        await scenario.finished(30, [again])
        attempts = {row[0] for run in runs for row in rig.rows(EVENTS, run.task_id)}
    assert attempts == {2}


async def two_at_once(scenario: Scenario, rig: Rig) -> list[Run]:
    """A worker is thawed while its successor streams the same answers."""
    scenario.calls_cut = True
    runs = await streaming_on_one(scenario, rig, 10, tokens=600)
    rig.children["agents-1"].send(Signals.SIGSTOP)
    await every(lambda: all("token 2" in run.heard.moments for run in runs), 2 * LEASE)
    rig.children["agents-1"].send(Signals.SIGCONT)
    await scenario.finished(60)
    return runs


async def test_a_worker_that_wakes_while_its_runs_go_on_elsewhere(begin: Begin, rig: Rig) -> None:
    """K6: it and its successor stream the same answers at once; only one of them is heard."""
    async with begin("K6 two at once") as scenario:
        runs = await two_at_once(scenario, rig)
        attempts = {row[0] for run in runs for row in rig.rows(EVENTS, run.task_id)}
    assert attempts == {2}


async def test_a_worker_that_is_asked_to_go_drains_and_hands_over(begin: Begin, rig: Rig) -> None:
    """K7: it ends within 30 s; what it could not finish is claimed <= 2 s later; no crash is counted."""
    async with begin("K7 drain") as scenario:
        scenario.calls_cut = True
        runs = await streaming_on_one(scenario, rig, 4, tokens=1_200, interval=0.04)
        rig.rest("agents-2")
        brief = [await scenario.watched(await scenario.agent(tokens=100, interval=0.04)) for _ in range(4)]
        await scenario.streaming(brief)
        await rig.wake("agents-2")
        worker = rig.children["agents-1"]
        rig.wanted.discard("agents-1")
        worker.send(Signals.SIGTERM)
        asked_at = time.monotonic()
        # What comes meanwhile is the other's.
        during = [await scenario.watched(await scenario.agent(tokens=5)) for _ in range(4)]
        await scenario.finished(10, during)
        await worker.ended(60)
        ended_at = time.monotonic()
        scenario.figures["exit"] = round(ended_at - asked_at, 2)
        await every(lambda: all("started 2" in run.heard.moments for run in runs), 30)
        scenario.figures["claimed_after_exit"] = round(
            max(run.heard.moments["started 2"] for run in runs) - ended_at, 2
        )
        scenario.figures["claimed_after_term"] = round(
            max(run.heard.moments["started 2"] for run in runs) - asked_at, 2
        )
        await scenario.finished(90)
        handed = [rig.rows(EVENTS, run.task_id)[0][:2] for run in runs]
        drained = [rig.rows(EVENTS, run.task_id)[0][:2] for run in (*brief, *during)]
    assert handed == [(2, 0)] * len(handed)
    assert drained == [(1, 0)] * len(drained)
    assert worker.returncode == 0
    bar(scenario.figures["exit"] <= 30, f"{scenario.figures}")
    bar(scenario.figures["claimed_after_exit"] <= 2, f"{scenario.figures}")


async def test_many_sweepers_and_two_beats_do_everything_once(begin: Begin, rig: Rig) -> None:
    """K13: each expired run is taken over once, told once, and counted as one crash."""
    async with begin("K13 two of each") as scenario:
        scenario.calls_cut = True
        await rig.wake("beat-2", "domains-2")
        runs = await streaming_on_one(scenario, rig, 20, tokens=300, interval=0.04)
        rig.rest("agents-1")
        await scenario.finished(60)
        counts = [rig.rows(EVENTS, run.task_id)[0][:2] for run in runs]
        told = [sum('"queued"' in raw for raw in run.heard.raw) for run in runs]
    assert counts == [(2, 1)] * len(runs)
    assert told == [1] * len(runs)
