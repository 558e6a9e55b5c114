"""Valkey and PostgreSQL that are killed, frozen, or come back without their data."""

from __future__ import annotations

import asyncio
import functools
import time

from tests.chaos.conftest import Begin
from tests.chaos.listener import Heard
from tests.chaos.rig import Rig
from tests.chaos.scenario import Scenario, every
from tests.chaos.sizes import bar, sized


async def first_claim(scenario: Scenario) -> float:
    """Seconds until something that is asked now has begun to run."""
    agent_id = await scenario.agent(tokens=2)
    asked_at = time.monotonic()
    run = await scenario.ask(agent_id, scenario.session())
    assert run.session is not None
    await scenario.open(run.session)
    await scenario.finished(60, [run])
    return round(run.heard.moments.get("started 1", float("inf")) - asked_at, 2)


def have_gone_on(heard: list[tuple[Heard, int]]) -> bool:
    """Whether each of these has more events by now, or has ended."""
    return all(task.ended.is_set() or len(task.raw) > count for task, count in heard)


async def test_valkey_is_killed_for_5_seconds_while_answers_stream(begin: Begin, rig: Rig) -> None:
    """K3: restarted with its data; nothing is lost, no worker ends, claims go on within 10 s."""
    async with begin("K3 valkey killed") as scenario:
        agent_id = await scenario.agent(tokens=200, interval=0.05)
        runs = [await scenario.watched(agent_id) for _ in range(8)]
        await scenario.streaming(runs)
        workers = {name: rig.children[name].pid for name in ("agents-1", "agents-2", "domains-1")}
        rig.kill_valkey()
        await asyncio.sleep(sized(3, 5))
        await rig.start_engine(rig.valkey)
        scenario.figures["first_claim"] = await first_claim(scenario)
        await scenario.finished(60)
        scenario.figures["workers_ended"] = sum(
            rig.children[name].pid != pid for name, pid in workers.items()
        )
    assert scenario.figures["workers_ended"] == 0
    bar(scenario.figures["first_claim"] <= 10, f"{scenario.figures}")


async def test_valkey_comes_back_without_its_data(begin: Begin, rig: Rig) -> None:
    """K4: twice in each answer; nothing is lost or doubled, clients get snapshots and the right end."""
    async with begin("K4 data lost") as scenario:
        for _ in range(sized(1, 4)):
            agent_id = await scenario.agent(tokens=sized(200, 500), interval=0.05)
            runs = [await scenario.watched(agent_id) for _ in range(sized(8, 40))]
            await scenario.streaming(runs)
            for _ in range(2):
                rig.kill_valkey(lose_data=True)
                waiting = [await scenario.try_to_ask(agent_id) for _ in range(4)]
                assert all(run is not None for _, run in waiting), waiting
                await asyncio.sleep(scenario.chance.uniform(0, 3))
                await rig.start_engine(rig.valkey)
                scenario.figures["first_claim"] = await first_claim(scenario)
                # The next loss comes when each answer has gone on.
                heard = [(run.heard, len(run.heard.raw)) for run in runs]
                await every(functools.partial(have_gone_on, heard), 30)
            await scenario.finished(60)
    assert scenario.line["snapshots"] >= 8
    bar(scenario.figures["first_claim"] <= 10, f"{scenario.figures}")
