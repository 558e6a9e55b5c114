"""Budgets while two worker processes use them at once, and while they are killed."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter

from tests.chaos.conftest import Begin
from tests.chaos.rig import Rig
from tests.chaos.scenario import every
from tests.chaos.sizes import sized
from tests.money import SUMS, wrong_sums

ENDED = "SELECT count(*) FROM core_task WHERE id = ANY(%s::uuid[]) AND status IN ('completed', 'failed')"
ENDS = """
SELECT COALESCE(error->>'type', result->>'finish_reason') FROM core_task WHERE id = ANY(%s::uuid[])
"""


async def test_what_killed_workers_held_is_counted_and_nothing_leaks(begin: Begin, rig: Rig) -> None:
    """All agent workers killed mid-stream: held is 0 afterwards, and every sum is right to the token."""
    async with begin("money kills") as scenario:
        scenario.calls_cut = True
        agent_id = await scenario.agent(tokens=60, interval=0.04, max_output_tokens=100)
        budget_id = await scenario.bound(agent_id, limit_tokens=10**9)
        count = sized(12, 60)
        runs = [await scenario.watched(agent_id) for _ in range(count)]
        await scenario.streaming(runs)
        held = "SELECT held_tokens FROM core_budgetuse WHERE budget_id = %s"
        assert rig.rows(held, budget_id)[0][0] >= count * 100
        rig.kill("agents-1", "agents-2")
        await scenario.finished(60)
    calls = scenario.figures["calls"]
    assert calls == {"exact": count, "unknown": count}
    # Each of the killed ones with its whole reservation: the answer's bound, and the prompt at most.
    assert scenario.figures["budgets_spent"] >= count * (100 + 60)


async def test_100_chats_over_two_workers_overspend_nothing(begin: Begin, rig: Rig) -> None:
    """L2: a budget of 10,000 tokens, by the provider's own books; afterwards a message is refused."""
    async with begin("L2 budget") as scenario:
        agent_id = await scenario.agent(tokens=300, interval=0.001, max_output_tokens=320)
        budget_id = await scenario.bound(agent_id, limit_tokens=10_000)
        scenario.budgets.clear()  # looked at below

        async def ask() -> str:
            body = {"agent_id": agent_id, "message": f"Please. {secrets.token_hex(8)}"}
            answer = await scenario.post("/api/v1/chat/message", body)
            assert answer.status in (202, 429), answer
            return answer.body["result"]["task_id"] if answer.status == 202 else ""

        tasks = [task for task in await asyncio.gather(*(ask() for _ in range(100))) if task]
        await every(lambda: rig.rows(ENDED, tasks) == [(len(tasks),)], 60)
        [model] = scenario.names
        usages = [entry["usage"] for entry in rig.books() if entry["model"] == model]
        taken = sum(usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)
        scenario.names.clear()
        assert 9_000 < taken <= 10_000
        assert wrong_sums(rig.rows(SUMS, [budget_id])) == []
        sums = "SELECT held_tokens, spent_tokens FROM core_budgetuse WHERE budget_id = %s"
        assert rig.rows(sums, budget_id) == [(0, taken)]
        ends = Counter(end for (end,) in rig.rows(ENDS, tasks))
        scenario.figures |= {"taken": taken, "ends": dict(ends)}
        assert set(ends) <= {"stop", "budget", "BudgetExhausted"}
        body = {"agent_id": agent_id, "message": "Please. " + "x" * (10_000 - taken)}
        refused = await scenario.post("/api/v1/chat/message", body)
        assert (refused.status, refused.body["error"]["type"]) == (429, "BudgetExhausted")
        assert refused.headers["retry-after"] == str(24 * 60 * 60)
