"""Webhooks while the worker that sends them is killed, and their receiver comes and goes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.points import NOTICE_POINTS
from tests.chaos.rig import Rig, until
from tests.chaos.sizes import FULL, sized
from tests.orchestrator.webhooks.receiver import Answer, Delivered, Receiver

# Between the commit and the request; all of them in the full set.
SHORT = ("relay: committed",)
SECONDS = 120.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def call(rig: Rig, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {rig.api_key}"}
    answer = rig.http.request(method, rig.base_url + path, json=body, headers=headers, timeout=30)
    assert answer.ok, answer.text
    return answer.json() if answer.content else None


def flap(receiver: Receiver) -> None:
    """Every fourth message is refused when it first comes; its next attempt is 5 s away."""
    seen: set[str] = set()

    def answer(request: Delivered) -> Answer:
        message = request.headers["webhook-id"]
        is_new = message not in seen
        seen.add(message)
        return (503, {}, b"not now") if is_new and len(seen) % 4 == 0 else (200, {}, b"")

    receiver.answer = answer


def told(receiver: Receiver) -> dict[str, list[str]]:
    """What each agent was called when its events were taken: in their order, repeats left out."""
    names: dict[str, list[str]] = {}
    taken = set()
    for request in list(receiver.taken):
        if request.headers["webhook-id"] not in taken:
            taken.add(request.headers["webhook-id"])
            data = request.event["data"]
            names.setdefault(data["agent_id"], []).append(data["agent_name"])
    return names


@pytest.mark.parametrize("point", NOTICE_POINTS if FULL else SHORT)
async def test_every_event_arrives_in_order(rig: Rig, receiver: Receiver, tmp_path: Path, point: str) -> None:
    """At least once, in the order of each agent's changes, signed."""
    agents, changes, crashes = sized(3, 10), sized(2, 6), sized(1, 2)
    for number in range(crashes):
        (tmp_path / str(number)).write_text(str(number))
    expected: dict[str, list[str]] = {}
    async with rig.supervised():
        await rig.as_usual()
        flap(receiver)
        webhook = call(
            rig,
            "POST",
            "/api/v1/webhooks",
            {"url": receiver.url, "events": ["agent_created", "agent_updated"]},
        )
        async with rig.altered(["domains-1"], chaos_crash=point, chaos_permits=str(tmp_path)):
            for number in range(agents):
                fields = {"type": "assistant", "config": {"provider": "scripted", "model": "echo"}}
                made = call(rig, "POST", "/api/v1/agents", {"name": f"{number}: 0", **fields})
                expected[made["agent_id"]] = [f"{number}: 0"]
            for change in range(1, changes + 1):
                for names in expected.values():
                    names.append(f"{names[0].partition(':')[0]}: {change}")
                for agent_id, names in expected.items():
                    path = f"/api/v1/agents/{agent_id}"
                    await asyncio.to_thread(call, rig, "PATCH", path, {"name": names[-1]})
            await until(lambda: told(receiver) == expected, SECONDS)
            assert len(os.listdir(tmp_path)) < crashes  # it was killed
    for request in receiver.requests:
        event = request.verify(webhook["secret"])
        assert event["tenant_id"] == rig.tenant_id
    open_ones = "SELECT count(*) FROM orchestrator_delivery WHERE endpoint_id = %s AND status <> 'delivered'"
    await until(lambda: rig.rows(open_ones, webhook["webhook_id"]) == [(0,)], SECONDS)
    for agent_id in expected:
        call(rig, "DELETE", f"/api/v1/agents/{agent_id}")
    call(rig, "DELETE", f"/api/v1/webhooks/{webhook['webhook_id']}")
