"""Moments that are hard to hit: a cancel at any time, a message twice, a rollback, a log that is gone."""

from __future__ import annotations

import asyncio
import json
import time

from tests.chaos.conftest import Begin
from tests.chaos.rig import Rig
from tests.chaos.scenario import Run, Scenario, every, percentiles
from tests.chaos.sizes import bar, sized

# Hands every open task's message to the broker again and again, while a file stands there; prints how often.
AGAIN = """
import time
from pathlib import Path
from core.models import Task
from core.queues.names import QueueName
from core.queues.publisher import publish

count = 0
while Path({stop!r}).exists():
    for task in Task.unscoped.filter(created_at__gte={since!r}):
        publish(task.action, task.pk, task.tenant_id, QueueName.parse(task.queue))
        count += 1
    time.sleep(0.05)
print(count)
"""

# Questions of which a share is rolled back after everything was written; prints the ids of the others.
ROLLBACKS = """
import json
import random
from django.db import transaction
from core.actions.bus import execute
from core.models import Task
from core.tenancy import tenant_scope
from orchestrator.actions import ChatSendMessageAction

class Undone(Exception):
    pass

chance, kept, undone = random.Random({seed}), [], 0
with tenant_scope({tenant_id!r}):
    for mark in {marks!r}:
        try:
            with transaction.atomic():
                message = "Please answer. " + mark
                sent = execute(ChatSendMessageAction(agent_id={agent_id!r}, message=message))
                if chance.random() < 0.9:
                    undone += 1
                    raise Undone
            kept.append([str(sent.task_id), sent.session_id, mark])
        except Undone:
            pass
print(json.dumps([kept, undone]))
"""

# What the database holds of a tenant's tasks and messages.
COUNT = """
SELECT (SELECT count(*) FROM core_task WHERE action = 'agent.execute'),
       (SELECT count(*) FROM conversations_message)
"""


async def race_cancels(scenario: Scenario, count: int) -> None:
    """So many runs, each cancelled at a random moment of its first two seconds."""
    agent_id = await scenario.agent(tokens=75, interval=0.02)
    asked_at: dict[str, float] = {}
    took: list[float] = []
    gate = asyncio.Semaphore(20)

    async def race() -> None:
        moment = scenario.chance.uniform(0.0, 2.0)
        async with gate:
            run = await scenario.watched(agent_id)
            await asyncio.sleep(moment)  # the moment is what is tried
            asked_at[run.mark] = time.time()
            answer = await scenario.cancel(run)
        took.append(answer.seconds)
        assert answer.status in (200, 409), answer
        run.ending = ("cancelled",) if answer.status == 200 else ("completed",)

    await asyncio.gather(*(race() for _ in range(count)))
    await scenario.finished(30)
    entries = [entry for entry in scenario.rig.books() if entry["model"] in scenario.names]
    last_bytes = [
        entry["last_byte_at"] - asked_at[entry["messages"][-1]["content"].rpartition(" ")[2]]
        for entry in entries
        if entry["outcome"] == "cut" and entry["last_byte_at"]
    ]
    scenario.figures["cut"] = len(last_bytes)
    scenario.figures["still_open"] = sum(entry["outcome"] == "running" for entry in entries)
    scenario.figures["cancel_to_last_byte"] = percentiles(last_bytes)
    scenario.figures["cancel"] = percentiles(took)


async def test_a_cancel_at_any_moment_ends_a_task_once(begin: Begin) -> None:
    """N5: fired 0-2,000 ms after the start, 200 times: one end each, nothing after `cancelled`.

    The provider's connection is closed, its last byte was sent within 2 s of the cancel.
    """
    async with begin("N5 cancels") as scenario:
        await race_cancels(scenario, sized(30, 200))
    assert scenario.figures["cut"] > 0
    assert scenario.figures["still_open"] == 0
    bar(scenario.figures["cancel_to_last_byte"]["p99"] <= 2.0, f"{scenario.figures}")


async def deliver_again(scenario: Scenario, count: int) -> None:
    """So many runs, whose messages come again before, while and after they run."""
    rig = scenario.rig
    agent_id = await scenario.agent(tokens=40)
    (since,) = rig.rows("SELECT now()::text")[0]
    stop = rig.home / "again"
    stop.touch()
    again = asyncio.create_task(asyncio.to_thread(rig.shell, AGAIN.format(stop=str(stop), since=since)))
    for _ in range(count):
        await scenario.watched(agent_id)
        await asyncio.sleep(0.05)
    await scenario.finished(30)
    await asyncio.sleep(1.0)  # for messages of tasks that are over
    stop.unlink()
    scenario.figures["deliveries"] = int(await again)


async def test_every_message_delivered_again_and_again_changes_nothing(begin: Begin) -> None:
    """N9: before, while and after each task runs: no visible effect."""
    async with begin("N9 duplicates") as scenario:
        await deliver_again(scenario, sized(20, 100))
    assert scenario.figures["deliveries"] > 3 * len(scenario.runs)
    assert scenario.line["most_attempts"] == 1


async def ask_50_times_at_once(scenario: Scenario) -> None:
    """The same question with the same key, fifty times in one moment."""
    agent_id = await scenario.agent(tokens=5)
    session = await scenario.open(scenario.session())
    key = f"{scenario.chance.getrandbits(64):016x}"
    answers = await asyncio.gather(*(scenario.try_to_ask(agent_id, session, key=key) for _ in range(50)))
    scenario.figures["answers"] = len({str(answer.body.get("result")) for answer, _ in answers})
    scenario.figures["accepted_of_50"] = sum(answer.status == 202 for answer, _ in answers)
    tasks = {run.task_id: run for run in scenario.runs}
    scenario.runs[:] = tasks.values()
    scenario.duplicated += [f"{task_id}: a second task of one key" for task_id in list(tasks)[1:]]
    await scenario.finished(30)


async def test_the_same_question_50_times_at_once_is_one_task(begin: Begin) -> None:
    """N1: one key: 1 task, 50 equal answers."""
    async with begin("N1 one key") as scenario:
        await ask_50_times_at_once(scenario)
    assert (scenario.figures["answers"], scenario.figures["accepted_of_50"]) == (1, 50)


async def test_what_is_rolled_back_publishes_nothing(begin: Begin, rig: Rig) -> None:
    """N9: rollbacks mixed with commits: nothing of them runs, each committed task finishes once."""
    async with begin("N9 rollbacks") as scenario:
        agent_id = await scenario.agent(tokens=2, interval=0.001)
        before = rig.rows(COUNT)[0]
        marks = [f"{scenario.chance.getrandbits(64):016x}" for _ in range(sized(200, 2000))]
        source = ROLLBACKS.format(seed=scenario.seed, tenant_id=rig.tenant_id, marks=marks, agent_id=agent_id)
        kept, undone = json.loads(await asyncio.to_thread(rig.shell, source))
        for task_id, session_id, mark in kept:
            expected = scenario.models[agent_id]
            scenario.runs.append(
                Run(task_id, session_id, mark, expected, ("completed",), None, "", time.monotonic())
            )
        await scenario.finished(60)
        scenario.figures["undone"] = undone
        tasks, messages = (now - then for now, then in zip(rig.rows(COUNT)[0], before, strict=True))
    assert undone > len(marks) / 2
    assert (tasks, messages) == (len(kept), 2 * len(kept))


async def test_a_message_that_is_accepted_while_the_broker_is_away_runs_later(begin: Begin, rig: Rig) -> None:
    """202, although nobody can be told; the runs begin when the broker is back."""
    async with begin("N9 broker away") as scenario:
        agent_id = await scenario.agent(tokens=5)
        watched = [await scenario.open(scenario.session()) for _ in range(5)]
        rig.kill_valkey()
        answers = []
        for number in range(sized(10, 40)):
            session = watched[number] if number < len(watched) else scenario.session()
            answer, _ = await scenario.try_to_ask(agent_id, session)
            answers.append(answer)
        await rig.start_engine(rig.valkey)
        back_at = time.monotonic()
        scenario.figures["post"] = percentiles(answer.seconds for answer in answers)
        # Who was told of its session only now hears from the beginning all the same.
        late = [run.session for run in scenario.runs if run.session and run.session not in watched]
        await asyncio.gather(*(scenario.open(session) for session in late))
        await scenario.finished(60)
        scenario.figures["back_to_last"] = round(
            max(run.heard.moments.get("last", back_at) for run in scenario.runs) - back_at, 2
        )
    assert [answer.status for answer in answers] == [202] * len(answers)
    bar(scenario.figures["post"]["p99"] <= 2.0, f"{scenario.figures}")


async def test_a_log_that_is_deleted_under_an_open_socket_is_replaced_by_a_snapshot(
    begin: Begin, rig: Rig
) -> None:
    """Snapshot, then live: no event is ignored, the text is whole."""
    async with begin("N9 log deleted") as scenario:
        agent_id = await scenario.agent(tokens=120, interval=0.03)
        runs = [await scenario.watched(agent_id) for _ in range(sized(5, 30))]
        await every(lambda: all(len(run.heard.text) > 100 for run in runs), 30)
        source = f"""
from core import valkey
from core.events.groups import session_name
names = [session_name({rig.tenant_id!r}, key) for key in {[run.session_id for run in runs]!r}]
client, gone = valkey.client(), 0
for key in client.scan_iter(count=1000):
    if any(name in key.decode("latin-1") for name in names):
        gone += client.delete(key)
print(gone)
"""
        scenario.figures["deleted"] = int(await asyncio.to_thread(rig.shell, source))
        await scenario.finished(30)
        # A second turn on the same socket.
        for run in runs:
            await scenario.ask(agent_id, run.session)
        await scenario.finished(30)
    assert scenario.figures["deleted"] >= 2 * len(runs)
    assert scenario.line["snapshots"] >= len(runs)
