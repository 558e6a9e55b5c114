"""Batches while the workers that run and feed them are killed."""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.fake_model import answer_text
from tests.chaos.ledger import ROWS, Row, wrong
from tests.chaos.points import BATCH_POINTS
from tests.chaos.rig import Rig, until
from tests.chaos.scenario import Report
from tests.chaos.sizes import FULL, sized

SECONDS = 180.0
TOKENS = 10
# Between what has ended and what begins; all of them in the full set.
SHORT = ("feed: inside",)


def call(rig: Rig, method: str, path: str, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {rig.api_key}", **options.pop("headers", {})}
    answer = rig.http.request(method, rig.base_url + path, headers=headers, timeout=30, **options)
    assert answer.ok, answer.text
    return answer


def begin(rig: Rig, count: int) -> dict[str, Any]:
    """A batch of so many items, and its model's name."""
    model = f"fake?tokens={TOKENS}&interval=0.05&mark={secrets.token_hex(4)}"
    fields = {"name": "Chaos", "type": "chaos", "config": {"provider": "openai", "model": model}}
    agent_id = call(rig, "POST", "/api/v1/agents", json=fields).json()["agent_id"]
    lines = "\n".join(json.dumps({"custom_id": f"c{n}", "message": f"Q{n}"}) for n in range(count))
    kind = {"Content-Type": "application/jsonl"}
    made: dict[str, Any] = call(
        rig, "POST", f"/api/v1/batch?agent_id={agent_id}", data=lines, headers=kind
    ).json()
    return made


def state(rig: Rig, batch: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = call(rig, "GET", f"/api/v1/batch/{batch['batch_id']}").json()
    return shown


def check(rig: Rig, batch: dict[str, Any], count: int, report: Report, *, cut: bool) -> None:
    """Every item has ended once, with its whole answer, by one task of its own, and its end is told once.

    `cut`: runs of it were killed.
    """
    shown = state(rig, batch)
    assert (shown["total"], shown["succeeded"], shown["failed"], shown["cancelled"]) == (count, count, 0, 0)
    path = f"/api/v1/batch/{batch['batch_id']}/results?format=jsonl"
    found = [json.loads(line) for line in call(rig, "GET", path).text.splitlines()]
    assert [one["custom_id"] for one in found] == [f"c{n}" for n in range(count)]
    assert {one["output"]["text"] for one in found} == {answer_text(TOKENS)}
    assert len({one["task_id"] for one in found}) == count
    runs = "SELECT count(*) FROM core_task WHERE action = 'agent.execute' AND agent_id = %s"
    assert rig.rows(runs, shown["agent_id"]) == [(count,)]
    # Nothing was paid for without a row, and nothing twice but what was cut.
    written = rig.rows(ROWS.format("model") + " WHERE agent_id = %s", shown["agent_id"])
    models, rows = {model for model, *_ in written}, [Row(*columns) for _, *columns in written]
    calls = [entry for entry in rig.books() if entry["model"] in models]
    accuracies = Counter(row.accuracy for row in rows)
    report({"scenario": "batch", "items": count, "provider_calls": len(calls), "calls": dict(accuracies)})
    assert wrong(calls, rows, cut=cut) == []
    assert accuracies["exact"] == count
    told = "SELECT count(*) FROM core_notice WHERE event = 'batch_completed' AND subject = %s"
    assert rig.rows(told, batch["batch_id"]) == [(1,)]


@pytest.mark.parametrize("point", BATCH_POINTS if FULL else SHORT)
async def test_whoever_feeds_a_batch_may_be_killed(
    rig: Rig, report: Report, tmp_path: Path, point: str
) -> None:
    """At that point; what has begun goes on, and somebody feeds the rest."""
    count, crashes = sized(24, 100), sized(1, 3)
    for number in range(crashes):
        (tmp_path / str(number)).write_text(str(2 + 3 * number))
    async with rig.supervised():
        await rig.as_usual()
        async with rig.altered(["domains-1"], chaos_crash=point, chaos_permits=str(tmp_path)):
            batch = begin(rig, count)
            await until(lambda: state(rig, batch)["status"] == "completed", SECONDS)
            assert len(os.listdir(tmp_path)) < crashes  # it was killed
    check(rig, batch, count, report, cut=False)


async def test_every_worker_is_killed_mid_batch(rig: Rig, report: Report) -> None:
    """Those that run the items and the one that feeds them, again and again; none is taken for poison."""
    count, kills = sized(40, 200), sized(2, 6)
    async with rig.supervised():
        await rig.as_usual()
        batch = begin(rig, count)
        for number in range(1, kills + 1):
            share = count * number // (kills + 2)
            await until(lambda share=share: state(rig, batch)["done"] >= share, SECONDS)
            rig.kill("agents-1", "agents-2", "domains-1")
        await until(lambda: state(rig, batch)["status"] == "completed", SECONDS)
    check(rig, batch, count, report, cut=True)
