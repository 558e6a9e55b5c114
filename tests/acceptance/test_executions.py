"""Runs without a session: begin one, wait for it, follow it, list them."""

from __future__ import annotations

import json
import secrets
import uuid
from contextlib import closing
from typing import Any

import pytest
import redis
import requests
from websockets.sync.client import connect

from bench.fake_model import answer_text
from core.events.groups import log_name
from nooble.embedded import services_file
from tests.acceptance.stack import Stack, Turn, new_model, wait_for

PATH = "/api/v1/executions"


def begin(stack: Stack, agent_id: str, *, key: str | None = None, **fields: Any) -> requests.Response:
    headers = fields.pop("headers", {})
    if "messages" not in fields:
        fields.setdefault("input", "Hello")
    body = {"agent_id": agent_id, **fields}
    return stack.request("POST", PATH, key=key or stack.demo.keys["chats"], json=body, headers=headers)


def begun(stack: Stack, agent_id: str, **fields: Any) -> dict[str, Any]:
    response = begin(stack, agent_id, **fields)
    assert response.status_code == 202, response.text
    run: dict[str, Any] = response.json()
    return run


def shown(stack: Stack, task_id: str, key: str | None = None) -> dict[str, Any]:
    response = stack.request("GET", f"{PATH}/{task_id}", key=key or stack.demo.key)
    assert response.status_code == 200, response.text
    run: dict[str, Any] = response.json()
    return run


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=12&interval=0.002")


def test_a_run_is_begun_followed_and_looked_at(stack: Stack, agent_id: str) -> None:
    run = begun(stack, agent_id, user_id="ada", metadata={"order": 7}, priority="high")
    assert set(run) == {
        "task_id",
        "agent_id",
        "version",
        "status",
        "queue",
        "created_at",
        "events_url",
    }
    assert (run["agent_id"], run["version"]) == (agent_id, 1)
    assert run["queue"] == "agent:demo:execute:high"
    told = stack.http.get(run["events_url"], headers={"Accept": "text/event-stream"}).text
    lines = [line.removeprefix("data: ") for line in told.splitlines() if line.startswith("data: ")]
    assert Turn(json.loads(line) for line in lines).check().text == answer_text(12)
    state = shown(stack, run["task_id"])
    assert (state["status"], state["output"]["text"]) == ("completed", answer_text(12))
    assert (state["user_id"], state["metadata"], state["priority"]) == ("ada", {"order": 7}, 8)
    assert (state["error"], state["attempt"]) == (None, 1)
    assert stack.status(run["task_id"])["output"] == state["output"]


def test_an_answer_can_be_waited_for(stack: Stack, agent_id: str) -> None:
    response = begin(stack, agent_id, wait=30)
    assert response.status_code == 200
    assert (response.json()["status"], response.json()["output"]["text"]) == ("completed", answer_text(12))


def test_a_failed_run_can_be_waited_for(stack: Stack) -> None:
    response = begin(stack, stack.agent("fake-401"), wait=30)
    assert response.status_code == 200
    assert response.json()["error"]["type"] == "ProviderAuthenticationFailed"


def test_a_wait_that_is_too_short_is_no_end(stack: Stack) -> None:
    model = new_model("fake-endless?interval=0.01")
    response = begin(stack, stack.agent(model), wait=0.3)
    assert response.status_code == 202
    task_id = response.json()["task_id"]
    wait_for(lambda: stack.model.entries(model))
    assert stack.model.entry(model)["outcome"] == "running"
    assert stack.cancel(task_id).status_code == 200
    assert stack.finished(task_id)["status"] == "cancelled"
    wait_for(lambda: stack.model.entry(model)["outcome"], equal_to="cut")


def test_who_waits_may_leave(stack: Stack) -> None:
    """The run is asked for, and not only its answer: it goes on."""
    agent_id = stack.agent(new_model("fake?tokens=6&first_token=1"))
    with pytest.raises(requests.exceptions.ReadTimeout):
        stack.http.post(
            f"{stack.base_url}{PATH}",
            json={"agent_id": agent_id, "input": "Hello", "wait": 30},
            headers={"Authorization": f"Bearer {stack.demo.key}"},
            timeout=0.4,
        )
    response = stack.request("GET", PATH, params={"agent_id": agent_id}, key=stack.demo.key)
    [run] = response.json()["items"]
    assert stack.finished(run["task_id"])["status"] == "completed"


def test_messages_and_options(stack: Stack) -> None:
    model = new_model("fake?tokens=50")
    messages = [
        {"role": "system", "content": "Rhyme."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yellow"},
        {"role": "user", "content": "Again"},
    ]
    options = {"temperature": 0.5, "max_output_tokens": 3, "stop": ["END"]}
    response = begin(stack, stack.agent(model), messages=messages, options=options, wait=30)
    assert response.json()["output"]["text"] == answer_text(3)
    entry = stack.model.entry(model)
    assert entry["messages"] == messages
    assert (entry["fields"]["temperature"], entry["fields"]["stop"]) == (0.5, ["END"])


def test_a_version_can_be_asked_for(stack: Stack) -> None:
    agent_id = stack.agent("fake?tokens=2")
    change = {"config": {"provider": "openai", "model": "fake?tokens=4"}}
    assert (
        stack.request("PATCH", f"/api/v1/agents/{agent_id}", json=change, key=stack.demo.key).status_code
        == 200
    )
    texts = {}
    for version in (1, 2, None):
        fields = {} if version is None else {"version": version}
        run = begin(stack, agent_id, wait=30, **fields).json()
        texts[version] = (run["version"], run["output"]["text"])
    assert texts == {1: (1, answer_text(2)), 2: (2, answer_text(4)), None: (2, answer_text(4))}
    assert begin(stack, agent_id, version=3).status_code == 404


def test_the_tier_caps_the_priority(stack: Stack) -> None:
    agent_id = stack.agent("echo", tenant="small", provider="scripted")
    run = begun(stack, agent_id, key=stack.tenants["small"].key, priority=9)
    assert run["queue"] == "agent:small:execute:low"


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": "x", "messages": [{"role": "user", "content": "x"}]},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "name": "ada"}]},
        {"version": 0},
        {"priority": 10},
        {"wait": 61},
        {"wait": 0},
        {"options": {"stop": [""]}},
        {"options": {"colour": "red"}},
        {"session_id": "s-1"},
        {"agent_id": "nobody"},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_what_is_no_run(stack: Stack, agent_id: str, fields: dict[str, Any]) -> None:
    body = {"agent_id": agent_id, **({} if {"input", "messages"} & set(fields) else {"input": "x"}), **fields}
    response = stack.request("POST", PATH, key=stack.demo.key, json=body)
    assert (response.status_code, response.json()["error"]["type"]) == (422, "ValidationFailed")


@pytest.mark.usefixtures("nothing_stored")
def test_nothing_said_is_no_run(stack: Stack, agent_id: str) -> None:
    response = stack.request("POST", PATH, key=stack.demo.key, json={"agent_id": agent_id})
    assert response.status_code == 422


def test_more_than_the_agent_reads_is_refused(stack: Stack) -> None:
    response = begin(stack, stack.agent("fake", context_tokens=256), input="word " * 400)
    assert (response.status_code, response.json()["error"]["type"]) == (422, "ContextTooLong")
    assert response.json()["error"]["details"]["limit"] == 256


# --- Keys and tenants -------------------------------------------------------------------------------


def test_it_takes_a_key_that_may(stack: Stack, agent_id: str) -> None:
    body = {"agent_id": agent_id, "input": "Hello"}
    assert stack.request("POST", PATH, json=body).status_code == 401
    for key in (stack.demo.keys["reads agents"], stack.demo.keys["writes agents"]):
        assert stack.request("POST", PATH, key=key, json=body).status_code == 403
        assert stack.request("GET", PATH, key=key).status_code == 403


def test_another_tenant_sees_nothing_of_it(stack: Stack, agent_id: str) -> None:
    run = begun(stack, agent_id)
    foreign = stack.tenants["other"].key
    assert begin(stack, agent_id, key=foreign).json()["error"]["type"] == "AgentNotFound"
    for absent in (run["task_id"], "nobody"):
        response = stack.request("GET", f"{PATH}/{absent}", key=foreign)
        assert (response.status_code, response.json()["error"]["type"]) == (404, "TaskNotFound")
    listed = stack.request("GET", PATH, key=foreign, params={"agent_id": agent_id}).json()
    assert listed == {"items": [], "next": None}
    response = stack.request("GET", PATH, key=foreign, params={"cursor": run["task_id"]})
    assert response.status_code == 422


def test_a_chat_is_no_execution(stack: Stack, agent_id: str) -> None:
    asked = stack.ask(agent_id)
    response = stack.request("GET", f"{PATH}/{asked['task_id']}", key=stack.demo.key)
    assert response.status_code == 404


# --- Lists ------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_in_pages(stack: Stack) -> None:
    agent_id = stack.agent("echo", provider="scripted")
    made = [begun(stack, agent_id)["task_id"] for _ in range(5)]
    for task_id in made:
        stack.finished(task_id)
    found: list[str] = []
    cursor = None
    while True:
        params = {"agent_id": agent_id, "limit": 2, **({"cursor": cursor} if cursor else {})}
        page = stack.request("GET", PATH, key=stack.demo.key, params=params).json()
        found += [item["task_id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == made[::-1]
    for status, count in (("completed", 5), ("failed", 0)):
        params = {"agent_id": agent_id, "status": status}
        assert len(stack.request("GET", PATH, key=stack.demo.key, params=params).json()["items"]) == count


@pytest.mark.parametrize(
    "params",
    [{"status": "done"}, {"agent_id": "x"}, {"cursor": "x"}, {"limit": 0}],
    ids=lambda p: next(iter(p)),
)
def test_what_is_no_list(stack: Stack, params: dict[str, Any]) -> None:
    assert stack.request("GET", PATH, key=stack.demo.key, params=params).status_code == 422


# --- Once -------------------------------------------------------------------------------------------


def test_the_same_request_with_the_same_key_is_one_run(stack: Stack, agent_id: str) -> None:
    once = {"Idempotency-Key": secrets.token_hex(12)}
    first, second = (begun(stack, agent_id, headers=once) for _ in range(2))
    assert first == second
    waited = begin(stack, agent_id, headers={"Idempotency-Key": secrets.token_hex(12)}, wait=30)
    assert waited.status_code == 200
    response = begin(stack, agent_id, headers=once, input="Another")
    assert (response.status_code, response.json()["error"]["type"]) == (409, "IdempotencyKeyReused")
    other = begun(stack, agent_id, headers=once, key=stack.demo.key)
    assert other["task_id"] != first["task_id"]
    assert begin(stack, agent_id, headers={"Idempotency-Key": "short"}).status_code == 422


def test_one_that_waits_again_gets_the_end(stack: Stack, agent_id: str) -> None:
    once = {"Idempotency-Key": secrets.token_hex(12)}
    first, second = (begin(stack, agent_id, headers=once, wait=30) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()


# --- Told outside -----------------------------------------------------------------------------------


def test_its_end_is_told_to_dashboards_when_asked(stack: Stack, agent_id: str) -> None:
    url = f"{stack.base_url.replace('http', 'ws', 1)}/ws/tenants/demo/updates"
    protocols: Any = ["nooble.v1", f"nooble.bearer.{stack.demo.key}"]
    with connect(url, subprotocols=protocols, compression=None, proxy=None) as connection:
        quiet = begun(stack, agent_id, notify=False)
        stack.finished(quiet["task_id"])
        loud = begun(stack, agent_id, notify=True)
        while True:
            told = json.loads(connection.recv(timeout=30))
            if told.get("event") == "task_completed":
                break
    assert told["data"]["text"] == answer_text(12)
    stack.finished(loud["task_id"])


# --- What the log has lost --------------------------------------------------------------------------


@pytest.mark.parametrize("after", [None, 3], ids=["from the start", "after an event"])
def test_an_end_that_the_log_has_lost_is_told_from_the_row(
    stack: Stack, agent_id: str, after: int | None
) -> None:
    run = begin(stack, agent_id, wait=30).json()
    name = log_name("demo", "", uuid.UUID(run["task_id"]))
    url = json.loads(services_file(stack.home).read_text())["urls"]["redis_url"]
    with closing(redis.Redis.from_url(url)) as valkey:
        keys = [f"nooble:{kind}:{{{name}}}" for kind in ("log", "marks", "answer")]
        # The last word may still be on its way.
        wait_for(lambda: valkey.hexists(keys[1], f"task:{run['task_id']}"))
        assert valkey.delete(*keys) >= 2
    told = stack.http.get(run["events_url"], params={} if after is None else {"after": after}).text
    events = [
        json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line.startswith("data: ")
    ]
    names = [event["event"] for event in events]
    assert names[-2:] == ["agent_execution_completed", "task_completed"]
    assert events[-1]["data"]["text"] == answer_text(12)
