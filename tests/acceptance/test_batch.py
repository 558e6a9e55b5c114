"""Batches and the internal API on the running platform."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from bench.fake_model import answer_text
from tests.acceptance.stack import Stack, new_model, wait_for

BATCH = "/api/v1/batch"
COUNTS = ("total", "done", "succeeded", "failed", "cancelled")


def begin(stack: Stack, agent_id: str, count: int, *, tenant: str = "demo") -> dict[str, Any]:
    lines = "\n".join(json.dumps({"custom_id": f"c{n}", "message": f"Q{n}"}) for n in range(1, count + 1))
    response = stack.request(
        "POST",
        f"{BATCH}?agent_id={agent_id}",
        key=stack.tenants[tenant].key,
        data=lines,
        headers={"Content-Type": "application/jsonl"},
    )
    assert response.status_code == 202, response.text
    made: dict[str, Any] = response.json()
    assert (made["status"], made["total"]) == ("processing", count)
    return made


def state(stack: Stack, batch: dict[str, Any], tenant: str = "demo") -> dict[str, Any]:
    path = f"{BATCH}/{batch['batch_id']}"
    shown: dict[str, Any] = stack.request("GET", path, key=stack.tenants[tenant].key).json()
    return shown


def ended(stack: Stack, batch: dict[str, Any], tenant: str = "demo") -> tuple[str, tuple[int, ...]]:
    wait_for(lambda: state(stack, batch, tenant)["status"] in ("completed", "cancelled"))
    shown = state(stack, batch, tenant)
    return shown["status"], tuple(shown[name] for name in COUNTS)


def results(stack: Stack, batch: dict[str, Any], tenant: str = "demo") -> list[dict[str, Any]]:
    """All of them so far, by lines; and the same by pages."""
    path, key = f"{BATCH}/{batch['batch_id']}/results", stack.tenants[tenant].key
    file = stack.request("GET", f"{path}?format=jsonl", key=key)
    assert (file.status_code, file.headers["Content-Type"]) == (200, "application/jsonl")
    return [json.loads(line) for line in file.text.splitlines()]


def pages(stack: Stack, batch: dict[str, Any]) -> list[dict[str, Any]]:
    found, cursor = [], ""
    while True:
        path = f"{BATCH}/{batch['batch_id']}/results?limit=25{cursor}"
        page = stack.request("GET", path, key=stack.demo.key).json()
        found += page["items"]
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


def test_a_batch_is_worked_through_beside_a_conversation(stack: Stack) -> None:
    model = new_model("fake?tokens=12&interval=0.01")
    batch = begin(stack, stack.agent(model), 60)
    chat = stack.ask(stack.agent("fake?tokens=3"))
    assert stack.finished(chat["task_id"])["output"]["text"] == answer_text(3)
    assert ended(stack, batch) == ("completed", (60, 60, 60, 0, 0))
    found = results(stack, batch)
    assert [(one["position"], one["custom_id"]) for one in found] == [(n, f"c{n}") for n in range(1, 61)]
    assert {one["output"]["text"] for one in found} == {answer_text(12)}
    assert pages(stack, batch) == found
    # Each was asked once, and its calls are in the books of both sides.
    asked = sorted(entry["messages"][-1]["content"] for entry in stack.model.entries(model))
    assert asked == sorted(f"Q{n}" for n in range(1, 61))
    tasks = [one["task_id"] for one in found]
    usage = stack.rows(
        "SELECT count(*), count(DISTINCT task_id), min(accuracy) FROM core_usagerecord"
        " WHERE task_id = ANY(%s::uuid[])",
        tasks,
    )
    assert usage == [(60, 60, "exact")]


def test_partial_results_then_cancel(stack: Stack) -> None:
    batch = begin(stack, stack.agent("fake?tokens=4&interval=0.1"), 200)
    wait_for(lambda: len(results(stack, batch)) >= 5)
    partial = results(stack, batch)
    assert {one["status"] for one in partial} == {"completed"}
    positions = [one["position"] for one in partial]
    assert positions == sorted(positions)
    path = f"{BATCH}/{batch['batch_id']}/cancel"
    answer = stack.request("POST", path, key=stack.demo.key)
    assert answer.status_code == 200, answer.text
    status, (total, done, succeeded, failed, cancelled) = ended(stack, batch)
    assert (status, total, done, failed) == ("cancelled", 200, 200, 0)
    assert succeeded >= len(partial) and cancelled > 100
    found = results(stack, batch)
    assert found[: len(partial)] != [] and len(found) == 200
    by_status = {one["status"] for one in found}
    assert by_status == {"completed", "cancelled"}
    # What was cut has its text so far, what never began has no task.
    never = [one for one in found if one["task_id"] is None]
    assert all(one["status"] == "cancelled" and one["output"] is None for one in never)
    assert stack.request("POST", path, key=stack.demo.key).status_code == 409
    runs = "SELECT count(*) FROM core_task WHERE action = 'agent.execute' AND agent_id = %s"
    assert stack.rows(runs, batch["agent_id"]) == [(200 - len(never),)]


def test_two_tenants_side_by_side(stack: Stack) -> None:
    ours = begin(stack, stack.agent("fake?tokens=4"), 30)
    theirs = begin(stack, stack.agent("fake?tokens=5", tenant="other"), 30, tenant="other")
    assert ended(stack, ours) == ended(stack, theirs, "other") == ("completed", (30, 30, 30, 0, 0))
    assert {one["output"]["text"] for one in results(stack, ours)} == {answer_text(4)}
    assert {one["output"]["text"] for one in results(stack, theirs, "other")} == {answer_text(5)}
    for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel")):
        answer = stack.request(method, f"{BATCH}/{theirs['batch_id']}{path}", key=stack.demo.key)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "BatchNotFound")


def test_what_fails_is_told_item_by_item(stack: Stack) -> None:
    good, bad = stack.agent("fake?tokens=2"), stack.agent("fake-401")
    body = {"agent_id": good, "items": [{"message": "a"}, {"message": "b", "agent_id": bad}]}
    made = stack.request("POST", BATCH, key=stack.demo.keys["chats"], json=body)
    assert made.status_code == 202, made.text
    assert ended(stack, made.json()) == ("completed", (2, 2, 1, 1, 0))
    first, second = results(stack, made.json())
    assert (first["output"]["text"], first["error"]) == (answer_text(2), None)
    assert (second["output"], second["error"]["type"]) == (None, "ProviderAuthenticationFailed")


def test_one_bad_line_and_nothing_is_stored(stack: Stack, nothing_stored: None) -> None:
    response = stack.request(
        "POST",
        BATCH,
        key=stack.demo.key,
        data='{"message": "a"}\n{"message": 1}\nnot JSON\n',
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert response.status_code == 422
    assert {"lines.1.agent_id", "lines.2.message", "lines.3"} == set(response.json()["error"]["details"])
    assert stack.request("POST", BATCH, key=stack.demo.keys["reads agents"], json={}).status_code == 403
    assert stack.request("POST", BATCH, json={}).status_code == 401


@pytest.fixture
def service_token(stack: Stack) -> str:
    token: str = json.loads((stack.home / "secrets.json").read_text())["SERVICE_TOKEN"]
    return token


def test_a_service_runs_an_agent_for_a_tenant(stack: Stack, service_token: str) -> None:
    agent_id = stack.agent("fake?tokens=6", tenant="other")
    shown = stack.request("GET", f"/internal/v1/agents/{agent_id}?tenant_id=other", key=service_token)
    assert (shown.status_code, shown.json()["config"]["model"]) == (200, "fake?tokens=6")
    check = stack.request(
        "POST", f"/internal/v1/agents/{agent_id}/validate", key=service_token, json={"tenant_id": "other"}
    )
    assert check.json()["valid"] is True
    body = {"tenant_id": "other", "agent_id": agent_id, "input": "Hello"}
    made = stack.request("POST", "/internal/v1/executions", key=service_token, json=body)
    assert made.status_code == 202, made.text
    path = f"/internal/v1/tasks/{made.json()['task_id']}?tenant_id="
    wait_for(lambda: stack.request("GET", f"{path}other", key=service_token).json()["status"] == "completed")
    task = stack.request("GET", f"{path}other", key=service_token).json()
    assert task["result"]["text"] == answer_text(6)
    assert stack.request("GET", f"{path}demo", key=service_token).status_code == 404
    for key in (None, stack.demo.key, uuid.uuid4().hex):
        assert stack.request("GET", f"{path}other", key=key).status_code == 401
    assert stack.request("GET", "/internal/v1/health", key=service_token).status_code == 200
