"""Everything at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from signal import Signals

from tests.chaos.conftest import Begin
from tests.chaos.full.test_points import ask_until_accepted, cancel_until_answered
from tests.chaos.rig import Rig
from tests.chaos.scenario import Scenario, percentiles

SECONDS = 120.0
TASKS = 600
Fault = Callable[[], Awaitable[None]]


def faults(scenario: Scenario, rig: Rig) -> dict[str, Fault]:
    """What can happen; each leaves everything running, or to be started again by the supervisor."""
    chance = scenario.chance

    async def kill_a_worker() -> None:
        rig.kill(chance.choice(["agents-1", "agents-2", "domains-1"]))

    async def kill_the_web() -> None:
        rig.kill("web-1")

    async def kill_valkey() -> None:
        rig.kill_valkey()
        await asyncio.sleep(chance.uniform(0, 3))
        await rig.start_engine(rig.valkey)

    async def lose_valkeys_data() -> None:
        rig.kill_valkey(lose_data=True)
        await rig.start_engine(rig.valkey)

    async def freeze_valkey() -> None:
        rig.freeze(rig.valkey)
        await asyncio.sleep(chance.uniform(1, 7))
        rig.thaw(rig.valkey)

    async def restart_postgres() -> None:
        await asyncio.to_thread(rig.stop_postgres)
        await asyncio.sleep(chance.uniform(0, 3))
        await rig.start_engine(rig.postgres)

    async def stop_a_worker() -> None:
        child = rig.children[chance.choice(["agents-1", "agents-2"])]
        child.send(Signals.SIGSTOP)
        await asyncio.sleep(chance.uniform(5, 20))
        child.send(Signals.SIGCONT)

    async def ask_a_worker_to_go() -> None:
        rig.children[chance.choice(["agents-1", "agents-2"])].send(Signals.SIGTERM)

    async def cut_sockets() -> None:
        for session in chance.sample(scenario.sessions, len(scenario.sessions) // 2):
            session.cut()

    every_one = (
        kill_a_worker,
        kill_the_web,
        kill_valkey,
        lose_valkeys_data,
        freeze_valkey,
        restart_postgres,
        stop_a_worker,
        ask_a_worker_to_go,
        cut_sockets,
    )
    return {fault.__name__: fault for fault in every_one}


async def test_a_storm_of_all_faults_loses_nothing(begin: Begin, rig: Rig) -> None:
    """Two minutes of random faults, 600 questions by careful clients, every tenth of them cancelled."""
    async with begin("storm") as scenario:
        scenario.calls_cut = True
        scenario.ending = ("completed", "cancelled")
        chance = scenario.chance
        agent_id = await scenario.agent(tokens=80, interval=0.04)
        happened: Counter[str] = Counter()
        happening = faults(scenario, rig)

        async def ask(number: int) -> None:
            await asyncio.sleep(SECONDS * number / TASKS)
            run = await ask_until_accepted(scenario, agent_id)
            if number % 10 == 0:
                await asyncio.sleep(chance.uniform(0, 4))
                await cancel_until_answered(scenario, run)
                run.ending = ("completed", "cancelled")

        async def storm() -> None:
            while True:
                name = chance.choice(sorted(happening))
                happened[name] += 1
                await happening[name]()
                await asyncio.sleep(chance.uniform(0.5, 3))

        storming = asyncio.create_task(storm())
        asking = asyncio.gather(*(ask(number) for number in range(TASKS)))
        await asyncio.sleep(SECONDS)
        storming.cancel()
        await asyncio.wait((storming,))
        await rig.as_usual()
        await asking
        scenario.figures["faults"] = dict(happened)
        scenario.figures["last_end"] = round(await scenario.finished(180), 1)
        ends = [run.heard.moments.get("last", 0.0) - run.accepted_at for run in scenario.runs]
        scenario.figures |= percentiles(ends)
