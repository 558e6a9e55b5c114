"""K10: the process ends at a named point, between any two steps that belong together."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.chaos.conftest import Begin
from tests.chaos.points import POINTS
from tests.chaos.rig import Rig
from tests.chaos.scenario import Run, Scenario

TASKS = 50
CRASHES = 2
AGENTS, DOMAINS, WEB = ("agents-1", "agents-2"), ("domains-1",), ("web-1",)
# By the first word of a point: which children have it, and how often it may be passed before.
WHERE = {
    "post": (WEB, 20),
    "cancel": (WEB, 5),
    "claim": (AGENTS, 10),
    "call": (AGENTS, 10),
    "append": (AGENTS, 200),
    "settle": (AGENTS, 10),
    "ack": (AGENTS, 10),
    "callback": (DOMAINS, 20),
    "take-over": (AGENTS + DOMAINS, 3),
}


async def ask_until_accepted(scenario: Scenario, agent_id: str) -> Run:
    """As a careful client does: with a key, and again when there is no answer."""
    session = await scenario.open(scenario.session())
    key = f"{scenario.chance.getrandbits(64):016x}"
    while True:
        answer, run = await scenario.try_to_ask(agent_id, session, key=key)
        if run is not None:
            return run
        assert answer.status in (0, 503), answer
        await asyncio.sleep(0.1)


async def cancel_until_answered(scenario: Scenario, run: Run) -> None:
    run.ending = ("cancelled",)
    while True:
        answer = await scenario.cancel(run)
        if answer.status in (200, 409):
            return
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_at_this_point_loses_nothing(
    begin: Begin, rig: Rig, tmp_path: Path, point: str
) -> None:
    """50 tasks, two crashes: the four numbers are 0, and every question was put once."""
    kind = point.partition(":")[0]
    names, passes = WHERE[kind]
    async with begin(f"K10 {point}") as scenario:
        scenario.calls_cut = True
        for number in range(CRASHES):
            (tmp_path / str(number)).write_text(str(scenario.chance.randint(0, passes)))
        async with rig.altered(names, chaos_crash=point, chaos_permits=str(tmp_path)):
            # A cancel must find its run, whenever the web is back.
            agent_id = await scenario.agent(tokens=600 if kind == "cancel" else 60, interval=0.03)
            # Each call reserves room: what is held, taken and free must add up to the token.
            await scenario.bound(agent_id, limit_tokens=10**9)
            runs = await asyncio.gather(*(ask_until_accepted(scenario, agent_id) for _ in range(TASKS)))
            if kind == "cancel":
                await scenario.streaming(runs)
                await asyncio.gather(*(cancel_until_answered(scenario, run) for run in runs))
            if kind == "take-over":
                await scenario.streaming(runs)
                rig.kill("agents-1")
            await scenario.finished(120)
        scenario.figures["crashes"] = CRASHES - len(os.listdir(tmp_path))
        questions = "SELECT count(*) FROM conversations_message WHERE role = 'user' AND text = ANY(%s)"
        asked = [f"Please answer. {run.mark}" for run in runs]
        assert rig.rows(questions, asked) == [(TASKS,)]
        assert len({run.task_id for run in runs}) == TASKS
    assert scenario.figures["crashes"] > 0
