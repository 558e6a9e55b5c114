"""Mass updates on the running platform: HTTP, a worker, dashboards; and when a change is in force."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest

from tests.acceptance.stack import FINAL, Stack, new_model, wait_for
from tests.acceptance.test_agents import AGENTS, create
from tests.acceptance.test_updates import dashboard

BULK = f"{AGENTS}/bulk"
IN_FORCE = 1.0  # seconds


def mass_update(stack: Stack, **body: Any) -> dict[str, Any]:
    """The result of a mass update that must be accepted."""
    answer = stack.request("POST", BULK, json=body, key=stack.demo.key)
    assert answer.status_code == 202, answer.text
    assert answer.json().keys() == {"action_id", "success", "result", "error", "execution_time"}
    result: dict[str, Any] = answer.json()["result"]
    return result


def state(stack: Stack, task_id: str) -> dict[str, Any]:
    answer = stack.request("GET", f"{BULK}/{task_id}", key=stack.demo.key)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def finished(stack: Stack, task_id: str) -> dict[str, Any]:
    wait_for(lambda: state(stack, task_id)["status"] in FINAL)
    return state(stack, task_id)


def test_many_agents_change_while_the_api_goes_on(stack: Stack) -> None:
    agents = [create(stack) for _ in range(30)]
    never = str(uuid.uuid4())
    with dashboard(stack) as socket:
        names = [agent["slug"] for agent in agents[:15]] + [agent["agent_id"] for agent in agents[15:]]
        asked = mass_update(
            stack, agents=[*names, never], changes={"config": {"max_turns": 3}}, note="All at once"
        )
        assert asked.keys() == {"task_id", "status", "queue", "total"}
        assert (asked["total"], asked["queue"]) == (31, "orchestrator:demo:agent_bulk_update:low")
        done = finished(stack, asked["task_id"])
        assert (done["status"], done["done"], done["succeeded"], done["failed"]) == ("completed", 31, 30, 1)
        assert done["results"][-1]["error"]["type"] == "AgentNotFound"
        heard: list[dict[str, Any]] = []
        while len(heard) < len(agents):
            event = socket.receive()
            if event["event"] == "agent_updated":  # word of their making may still be under way
                heard.append(event)
    assert {event["data"]["agent_id"] for event in heard} == {agent["agent_id"] for agent in agents}
    for agent in agents:
        path = f"{AGENTS}/{agent['agent_id']}/versions"
        versions = stack.request("GET", path, key=stack.demo.key).json()["items"]
        assert [(version["version"], version["note"]) for version in versions] == [
            (2, "All at once"),
            (1, ""),
        ]


def test_a_mass_update_is_cancelled(stack: Stack) -> None:
    agents = [create(stack) for _ in range(40)]
    names = [agent["agent_id"] for agent in agents]
    task_id = mass_update(stack, agents=names, changes={"description": "Changed."})["task_id"]
    answer = stack.request("POST", f"{BULK}/{task_id}/cancel", key=stack.demo.key)
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"]["status"] in ("cancelled", "cancelling")
    found = finished(stack, task_id)
    assert (found["status"], found["failed"]) == ("cancelled", 0)
    changed = stack.rows(
        "SELECT count(*) FROM agents_agent WHERE id = ANY(%s::uuid[]) AND description = 'Changed.'", names
    )
    assert changed == [(found["succeeded"],)]
    assert found["succeeded"] < len(agents)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"changes": {"config": {"max_turns": 0}}, "all": True}, "changes.config.max_turns"),
        ({"changes": {"config": {"max_turns": 3}}}, "body"),
        ({"changes": {"name": "Same"}, "all": True}, "changes.name"),
    ],
)
def test_what_is_no_mass_update_is_refused(
    stack: Stack, body: dict[str, Any], named: str, nothing_stored: None
) -> None:
    answer = stack.request("POST", BULK, json=body, key=stack.demo.key)
    assert (answer.status_code, answer.json()["success"]) == (422, False)
    assert named in answer.json()["error"]["details"]


def test_others_do_not_find_it(stack: Stack) -> None:
    task_id = mass_update(stack, agents=[create(stack)["agent_id"]], changes={"type": "t"})["task_id"]
    for method, path in (("GET", ""), ("POST", "/cancel")):
        answer = stack.request(method, f"{BULK}/{task_id}{path}", key=stack.tenants["other"].key)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "TaskNotFound")
    assert finished(stack, task_id)["succeeded"] == 1


# Another process than those that answer: no word of the change reaches them.
CHANGE = """
from agents.actions import AgentUpdateAction
from core.actions.bus import execute
from core.tenancy import tenant_scope

with tenant_scope("demo"):
    execute(AgentUpdateAction(agent_id="{}", name="{}", config={{"model": "{}"}}, actor="elsewhere"))
print("changed")
"""


def test_a_change_is_in_force_within_a_second_in_every_process(stack: Stack) -> None:
    """The web decides which version answers, the worker what the agent is called: both have it in mind."""
    old, new, name = new_model("fake-echo"), new_model("fake-echo"), f"Renamed {uuid.uuid4().hex[:6]}"
    agent_id = stack.agent(old, instructions="You are {{agent_name}}.")

    def says() -> str:
        """What the agent is told to be, by its model, which repeats everything."""
        task_id = stack.ask(agent_id)["task_id"]
        text = stack.finished(task_id)["output"]["text"]
        return str(json.loads(text)[0]["content"])

    assert says() == "You are Acceptance."
    assert stack.shell(CHANGE.format(agent_id, name, new)) == "changed"
    changed = time.monotonic()
    while time.monotonic() - changed < IN_FORCE:
        says()  # neither forgets by being left alone
    before = len(stack.model.entries(old))
    assert says() == f"You are {name}."
    assert (len(stack.model.entries(old)), len(stack.model.entries(new)) > 0) == (before, True)
