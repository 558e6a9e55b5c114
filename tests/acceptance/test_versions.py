"""Versions over HTTP on the running platform: editors at once, a rollback under load, moves, the record."""

from __future__ import annotations

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import requests

from tests.acceptance.stack import Stack, new_model, new_session, wait_for
from tests.acceptance.test_agents import AGENTS, CONFIG, create, error_of


def of(agent: dict[str, Any], path: str = "") -> str:
    return f"{AGENTS}/{agent['agent_id']}{path}"


def patch(stack: Stack, agent: dict[str, Any], change: Any, tag: str | None = None) -> requests.Response:
    headers = {"If-Match": tag} if tag else None
    return stack.request("PATCH", of(agent), json=change, key=stack.demo.key, headers=headers)


def audit(stack: Stack, agent: dict[str, Any], tenant: str = "demo", **params: Any) -> list[dict[str, Any]]:
    """The agent's changes, oldest first."""
    params = {"object": agent["agent_id"], "limit": 200, **params}
    response = stack.request("GET", "/api/v1/audit", params=params, key=stack.tenants[tenant].key)
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items[::-1]


def test_versions_and_the_way_back(stack: Stack) -> None:
    agent = create(stack, config=CONFIG | {"instructions": "Be kind.\nBe brief."})
    patch(stack, agent, {"config": {"instructions": "Be kind.\nBe thorough."}, "note": "They asked for more"})
    listed = stack.request("GET", of(agent, "/versions"), key=stack.demo.key).json()
    assert [(item["version"], item["note"]) for item in listed["items"]] == [
        (2, "They asked for more"),
        (1, ""),
    ]
    params = {"from": 1, "to": 2}
    [change] = stack.request("GET", of(agent, "/diff"), params=params, key=stack.demo.key).json()["diff"]
    assert change["field"] == "config.instructions"
    assert "+Be thorough." in change["diff"].splitlines()
    back = stack.request("POST", of(agent, "/rollback"), json={"version": 1}, key=stack.demo.key)
    assert (back.status_code, back.headers["ETag"], back.json()["version"]) == (200, '"3"', 3)
    assert back.json()["config"] == agent["config"]
    versions = stack.request("GET", of(agent, "/versions"), key=stack.demo.key).json()["items"]
    assert versions[0]["config"] == versions[2]["config"]


def test_a_change_that_waits_does_not_answer(stack: Stack) -> None:
    old, new = new_model("fake?tokens=1"), new_model("fake?tokens=2")
    agent = create(stack, config=CONFIG | {"model": old})
    held = patch(stack, agent, {"config": {"model": new}, "publish": False}).json()
    assert (held["version"], held["published_version"]) == (2, 1)
    stack.finished(stack.ask(agent["agent_id"])["task_id"])
    assert (len(stack.model.entries(old)), stack.model.entries(new)) == (1, [])
    published = stack.request("POST", of(agent, "/publish"), key=stack.demo.key)
    assert published.json()["published_version"] == 2

    def is_asked() -> bool:
        stack.finished(stack.ask(agent["agent_id"])["task_id"])
        return bool(stack.model.entries(new))

    wait_for(is_asked)


def test_of_editors_at_once_one_is_first_and_the_others_hear_what_it_changed(stack: Stack) -> None:
    agent = create(stack)
    tag = stack.request("GET", of(agent), key=stack.demo.key).headers["ETag"]
    barrier = threading.Barrier(8)

    def edit(number: int) -> requests.Response:
        barrier.wait(timeout=30)
        return patch(stack, agent, {"name": f"Name {number}", "config": {"max_turns": number}}, tag)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(edit, range(20, 28)))
    [first] = [answer.json() for answer in answers if answer.status_code == 200]
    for answer in answers:
        if answer.status_code != 200:
            details = error_of(answer, 409)["details"]
            diff = {change["field"]: change["after"] for change in details["diff"]}
            assert (
                diff.items()
                >= {"name": first["name"], "config.max_turns": first["config"]["max_turns"]}.items()
            )
            assert (details["version"], f'"{details["etag"]}"') == (2, '"2"')
    present = stack.request("GET", of(agent), key=stack.demo.key)
    # A check of the new version may have ended meanwhile.
    assert {**present.json(), "validation": None} == {**first, "validation": None}
    assert [entry["verb"] for entry in audit(stack, agent)] == ["agent.create", "agent.update"]


def test_two_editors_of_what_is_no_configuration_notice_each_other(stack: Stack) -> None:
    agent = create(stack)
    tag = stack.request("GET", of(agent), key=stack.demo.key).headers["ETag"]
    assert patch(stack, agent, {"name": "Mine"}, tag).headers["ETag"] == '"1.1"'
    error = error_of(patch(stack, agent, {"description": "Yours"}, tag), 409)
    assert error["details"]["diff"] == [{"field": "name", "before": agent["name"], "after": "Mine"}]
    assert stack.request("GET", of(agent), key=stack.demo.key).json()["description"] == ""


def test_while_versions_change_each_run_has_exactly_one(stack: Stack) -> None:
    """Chat goes on while the agent goes to and fro between two models: no run mixes them."""
    models = [new_model("fake?tokens=1"), new_model("fake?tokens=2")]
    agent = create(stack, config=CONFIG | {"model": models[0], "instructions": models[0]})
    patch(stack, agent, {"config": {"model": models[1], "instructions": models[1]}})
    asked: list[str] = []
    over = threading.Event()

    def chat() -> None:
        session = new_session()
        while not over.is_set():
            turn = stack.ask(agent["agent_id"], session_id=session)
            asked.append(turn["task_id"])
            assert stack.finished(turn["task_id"])["status"] == "completed"

    def change() -> None:
        for version in cycle((1, 2)):
            if over.is_set():
                return
            response = stack.request(
                "POST", of(agent, "/rollback"), json={"version": version}, key=stack.demo.key
            )
            assert response.status_code == 200, response.text

    with ThreadPoolExecutor(5) as pool:
        working = [pool.submit(change), *[pool.submit(chat) for _ in range(4)]]
        try:
            wait_for(lambda: len(asked) >= 40 and all(stack.model.entries(model) for model in models))
        finally:
            over.set()
        for work in working:
            work.result(timeout=60)

    # What each run was pinned to, said that it was, and asked.
    rows = stack.database.execute(
        """
        SELECT task.id::text, version.number, version.config ->> 'model', array_agg(usage.model)
        FROM core_task task
        JOIN agents_agentversion version ON version.id = (task.payload ->> 'version_id')::bigint
        JOIN core_usagerecord usage ON usage.task_id = task.id
        WHERE task.id = ANY(%s) GROUP BY 1, 2, 3
        """,
        (asked,),
    ).fetchall()
    assert len(rows) == len(asked)
    for task_id, number, model, used in rows:
        assert used == [model]
        stream = stack.request("GET", f"/api/v1/chat/stream/{task_id}").text
        events = [json.loads(line[5:]) for line in stream.splitlines() if line.startswith("data:")]
        started = [event["data"] for event in events if event["event"] == "agent_execution_started"]
        assert [data["version"] for data in started] == [number]
    assert {model for _task, _number, model, _used in rows} == set(models)
    # The instructions are of the version that named the model.
    for model in models:
        assert {entry["messages"][0]["content"] for entry in stack.model.entries(model)} == {model}


def test_an_agent_moves_to_another_tenant(stack: Stack) -> None:
    agent = create(stack, slug=f"mover-{uuid.uuid4().hex[:8]}", config=CONFIG | {"instructions": "Ñandú 🦤"})
    document = stack.request("GET", of(agent, "/export"), key=stack.demo.key).json()
    other = stack.tenants["other"].key
    made = stack.request("POST", f"{AGENTS}/import", json=document, key=other)
    assert made.status_code == 201, made.text
    again = stack.request("GET", of(made.json(), "/export"), key=other).json()
    assert again == document
    twin = stack.request("POST", f"{AGENTS}/import", json=document, key=other).json()
    assert twin["slug"] != document["slug"]
    assert stack.request("GET", of(twin, "/export"), key=other).json() == document | {"slug": twin["slug"]}
    task = stack.ask(made.json()["agent_id"])
    assert stack.finished(task["task_id"])["status"] == "completed"


def test_large_imports_pass_and_larger_ones_do_not(stack: Stack) -> None:
    agent = create(stack)
    document = stack.request("GET", of(agent, "/export"), key=stack.demo.key).text
    path, key = f"{AGENTS}/import", stack.demo.key
    headers = {"Content-Type": "application/json"}
    large = document.encode() + b" " * (3 * 1024 * 1024)
    assert stack.request("POST", path, data=large, key=key, headers=headers).status_code == 201
    too_large = document.encode() + b" " * (32 * 1024 * 1024)
    error_of(stack.request("POST", path, data=too_large, key=key, headers=headers), 413)


def test_a_deleted_agent_comes_back_and_answers(stack: Stack) -> None:
    agent = create(stack)
    stack.request("DELETE", of(agent), key=stack.demo.key)
    restored = stack.request("POST", of(agent, "/restore"), key=stack.demo.key)
    assert (restored.status_code, restored.json()["slug"]) == (200, agent["slug"])
    question = {"agent_id": agent["agent_id"], "message": "Hello?"}
    wait_for(lambda: stack.request("POST", "/api/v1/chat/message", json=question).status_code == 202)


def test_the_record_tells_who_changed_what_and_nobody_elses(stack: Stack) -> None:
    agent = create(stack)
    headers = {"X-Request-ID": f"req-{uuid.uuid4().hex}"}
    change = {"config": {"temperature": 1}}
    stack.request("PATCH", of(agent), json=change, key=stack.demo.key, headers=headers)
    created, updated = audit(stack, agent)
    assert (created["verb"], created["before"], created["after"]["name"]) == (
        "agent.create",
        {},
        agent["name"],
    )
    assert (updated["before"]["config.temperature"], updated["after"]["config.temperature"]) == (None, 1.0)
    assert (updated["source"], updated["request_id"]) == ("api", headers["X-Request-ID"])
    assert updated["actor"] == f"key:{stack.demo.key.split('_')[1]}"
    assert audit(stack, agent, tenant="other") == []
    assert audit(stack, agent, actor="key:nobody") == []
    refused = stack.request("PATCH", of(agent), json={"config": {"temperature": 9}}, key=stack.demo.key)
    error_of(refused, 422)
    assert len(audit(stack, agent)) == 2
