"""Longer absences of Valkey and PostgreSQL."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.conftest import Begin
from tests.chaos.rig import Rig
from tests.chaos.scenario import Answer, Scenario, percentiles
from tests.chaos.sizes import bar
from tests.chaos.test_engines import first_claim

ASK_SECONDS = 0.2  # between questions


class Asking:
    """Questions that nobody watches, one after the other, until it is ended."""

    def __init__(self, scenario: Scenario, agent_id: str) -> None:
        self.answers: list[Answer] = []
        self._ending = asyncio.Event()
        self._task = asyncio.create_task(self._ask(scenario, agent_id))

    async def _ask(self, scenario: Scenario, agent_id: str) -> None:
        while not self._ending.is_set():
            answer, _ = await scenario.try_to_ask(agent_id)
            self.answers.append(answer)
            await asyncio.sleep(ASK_SECONDS)

    async def end(self) -> list[Answer]:
        """What all of them were answered, the last one too."""
        self._ending.set()
        await self._task
        return self.answers


async def test_postgres_is_away_for_10_seconds_while_50_answers_stream(begin: Begin, rig: Rig) -> None:
    """K8: POSTs get 503 with Retry-After, never 500; answers go on; all is normal <= 5 s after."""
    async with begin("K8 postgres away") as scenario:
        agent_id = await scenario.agent(tokens=300, interval=0.05)
        short = await scenario.agent(tokens=2)
        runs = [await scenario.watched(agent_id) for _ in range(50)]
        await scenario.streaming(runs)
        await asyncio.to_thread(rig.stop_postgres)
        lengths = [len(run.heard.text) for run in runs]
        asking = Asking(scenario, short)
        await asyncio.sleep(10)
        scenario.figures["went_on"] = sum(
            len(run.heard.text) > length for run, length in zip(runs, lengths, strict=True)
        )
        answers = await asking.end()
        await rig.start_engine(rig.postgres)
        back_at = time.monotonic()
        while (await scenario.try_to_ask(short))[0].status == 503:
            pass
        scenario.figures["normal_after"] = round(time.monotonic() - back_at, 2)
        scenario.figures["post"] = percentiles(answer.seconds for answer in answers)
        await scenario.finished(90)
    codes = {answer.status for answer in answers}
    assert codes == {503}, codes
    assert all("retry-after" in answer.headers for answer in answers)
    assert scenario.figures["went_on"] == len(runs)
    bar(scenario.figures["normal_after"] <= 5, f"{scenario.figures}")


async def test_valkey_freezes_and_then_restarts_five_times(begin: Begin, rig: Rig) -> None:
    """K9: frozen for 8 s, then 5 restarts in 5 s: POSTs are 202, p99 <= 2 s; claims go on <= 10 s after."""
    async with begin("K9 valkey frozen") as scenario:
        agent_id = await scenario.agent(tokens=300, interval=0.05)
        short = await scenario.agent(tokens=2)
        runs = [await scenario.watched(agent_id) for _ in range(8)]
        await scenario.streaming(runs)
        asking = Asking(scenario, short)
        rig.freeze(rig.valkey)
        await asyncio.sleep(8)
        rig.thaw(rig.valkey)
        for _ in range(5):
            rig.kill_valkey()
            await rig.start_engine(rig.valkey)
            await asyncio.sleep(0.8)
        scenario.figures["first_claim"] = await first_claim(scenario)
        answers = await asking.end()
        scenario.figures["post"] = percentiles(answer.seconds for answer in answers)
        await scenario.finished(90)
    assert {answer.status for answer in answers} == {202}
    bar(scenario.figures["post"]["p99"] <= 2, f"{scenario.figures}")
    bar(scenario.figures["first_claim"] <= 10, f"{scenario.figures}")


async def test_a_cancel_while_valkey_is_frozen_repeats_no_frame(begin: Begin, rig: Rig) -> None:
    """What waits in its sockets is done when it thaws, though the answers were given up long before."""
    async with begin("cancel while frozen") as scenario:
        scenario.ending = ("cancelled",)
        agent_id = await scenario.agent(tokens=800, interval=0.05)
        runs = [await scenario.watched(agent_id) for _ in range(30)]
        await scenario.streaming(runs)
        rig.freeze(rig.valkey)
        cancels = asyncio.gather(*(scenario.cancel(run) for run in runs))
        await asyncio.sleep(6.5)  # longer than anybody waits for an answer of Valkey
        rig.thaw(rig.valkey)
        answers = await cancels
        await scenario.finished(60)
        scenario.figures["cancel"] = percentiles(answer.seconds for answer in answers)
    assert {answer.status for answer in answers} == {200}
