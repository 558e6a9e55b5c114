"""Chat over HTTP: messages, status, the aliases, and what they refuse."""

from __future__ import annotations

import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
import requests

from bench.fake_model import answer_text
from tests.acceptance.stack import PROTOCOL, Stack, new_session, wait_for

NOBODY = "01a1f858-0000-7000-8000-000000000000"
SEND = ("/api/v1/chat/message", "/api/chat/send")


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=2")


@pytest.fixture(scope="module")
def foreign_agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=2", tenant="other")


@pytest.fixture(scope="module")
def done(stack: Stack, agent_id: str) -> dict[str, Any]:
    """What the POST of a task answered that has completed since."""
    asked = stack.ask(agent_id)
    assert stack.finished(asked["task_id"])["status"] == "completed"
    return asked


def action_result(response: requests.Response) -> dict[str, Any]:
    """The body, which must be an ActionResult."""
    body: dict[str, Any] = response.json()
    assert {"action_id", "success", "result", "error", "execution_time"} <= body.keys()
    assert isinstance(body["action_id"], str) and body["action_id"]
    assert isinstance(body["execution_time"], float) and 0 <= body["execution_time"] < 30
    assert body["success"] is (response.status_code < 400)
    if body["success"]:
        assert body["error"] is None and isinstance(body["result"], dict)
    else:
        assert body["result"] is None
        assert body["error"].keys() == {"type", "message", "details"}
        assert body["request_id"] == response.headers["X-Request-ID"]
    return body


def shape(body: dict[str, Any]) -> dict[str, Any]:
    """The body without what is new in every answer."""
    return {key: body[key] for key in body if key not in ("action_id", "execution_time", "request_id")}


# --- POST a message ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SEND)
def test_a_message_is_answered_with_all_that_a_client_needs(stack: Stack, agent_id: str, path: str) -> None:
    body = {
        "tenant_id": "demo",
        "agent_id": agent_id,
        "session_id": new_session(),
        "message": "Hello",
        "user_info": {"user_id": "ana", "plan": "gold"},
        "priority": "normal",
        "metadata": {"page": "/prices"},
    }
    response = stack.request("POST", path, json=body)
    assert response.status_code == 202
    result = action_result(response)["result"]
    assert result.keys() == {
        "task_id",
        "session_id",
        "status",
        "queue",
        "estimated_time",
        "websocket_url",
        "events_url",
        "resume_token",
    }
    assert result["session_id"] == body["session_id"]
    assert result["status"] in ("pending", "queued")
    assert result["queue"] == "agent:demo:execute:normal"
    assert result["estimated_time"] > 0
    assert stack.finished(result["task_id"])["status"] == "completed"


def test_task_ids_are_uuids_of_version_7(stack: Stack, done: dict[str, Any]) -> None:
    task_id = uuid.UUID(done["task_id"])
    assert task_id.version == 7
    assert task_id.variant == uuid.RFC_4122


def test_a_session_without_an_id_gets_an_unguessable_one(stack: Stack, agent_id: str) -> None:
    names = {stack.ask(agent_id)["session_id"] for _ in range(3)}
    assert len(names) == 3
    # 128 random bits in an alphabet of 64 characters take 22 of them.
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22,64}", name) for name in names)


def test_the_websocket_url_can_be_opened_as_it_is(stack: Stack, agent_id: str) -> None:
    asked = stack.ask(agent_id)
    protocols = [PROTOCOL, f"nooble.resume.{asked['resume_token']}"]
    with stack.socket("", url=asked["websocket_url"], protocols=protocols, after=0) as socket:
        assert socket.hello["data"]["session_id"] == asked["session_id"]
        assert socket.turn().check().text == answer_text(2)


def test_only_the_message_that_creates_a_session_is_given_its_token(stack: Stack, agent_id: str) -> None:
    first = stack.ask(agent_id)
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", first["resume_token"])
    second = stack.ask(agent_id, session_id=first["session_id"])
    assert "resume_token" not in second
    assert second["session_id"] == first["session_id"]


@pytest.mark.parametrize(
    ("priority", "word"),
    [
        ("low", "low"),
        ("normal", "normal"),
        ("high", "high"),
        *((number, "low") for number in (0, 1, 2)),
        *((number, "normal") for number in (3, 4, 5, 6)),
        *((number, "high") for number in (7, 8, 9)),
    ],
)
def test_the_priority_stands_in_the_queues_name(
    stack: Stack, agent_id: str, priority: str | int, word: str
) -> None:
    asked = stack.ask(agent_id, priority=priority)
    assert asked["queue"] == f"agent:demo:execute:{word}"
    assert stack.finished(asked["task_id"])["queue"] == asked["queue"]


def test_without_a_priority_it_is_normal(done: dict[str, Any]) -> None:
    assert done["queue"] == "agent:demo:execute:normal"


@pytest.mark.parametrize("priority", ["high", 9, "normal", 3])
def test_the_tier_caps_the_priority(stack: Stack, priority: str | int) -> None:
    agent_id = stack.agent("fake?tokens=2", tenant="small")
    asked = stack.ask(agent_id, priority=priority)
    assert asked["queue"] == "agent:small:execute:low"
    assert stack.finished(asked["task_id"])["status"] == "completed"


def test_a_message_may_have_32768_characters(stack: Stack) -> None:
    message = "🙂" * 32_768
    fields = {"agent_id": stack.agent("fake?tokens=1"), "message": message}
    response = stack.request(
        "POST",
        SEND[0],
        data=json.dumps(fields, ensure_ascii=False).encode(),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 202
    asked = response.json()["result"]
    assert stack.finished(asked["task_id"])["status"] == "completed"
    assert stack.messages(asked["session_id"])[0]["text"] == message


def test_a_session_belongs_to_one_agent(stack: Stack, agent_id: str) -> None:
    asked = stack.ask(agent_id)
    body = {
        "agent_id": stack.agent("fake?tokens=1"),
        "message": "Hello",
        "session_id": asked["session_id"],
    }
    response = stack.request("POST", SEND[0], json=body)
    assert response.status_code == 409
    assert action_result(response)["error"]["type"]
    stack.finished(asked["task_id"])
    assert [message["role"] for message in stack.messages(asked["session_id"])] == ["user", "assistant"]


def test_first_messages_at_the_same_time_make_one_session(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    with ThreadPoolExecutor(max_workers=8) as pool:
        asked = list(pool.map(lambda _: stack.ask(agent_id, session_id=session_id), range(8)))
    assert len([result for result in asked if "resume_token" in result]) == 1
    for result in asked:
        assert stack.finished(result["task_id"])["status"] == "completed"
    assert len(stack.messages(session_id)) == 16


def test_agents_that_want_one_session_at_the_same_time_do_not_share_it(stack: Stack) -> None:
    session_id = new_session()
    agents = [stack.agent("fake?tokens=1") for _ in range(8)]

    def ask(agent_id: str) -> int:
        body = {"agent_id": agent_id, "message": "Hello", "session_id": session_id}
        return stack.request("POST", SEND[0], json=body).status_code

    with ThreadPoolExecutor(max_workers=8) as pool:
        codes = list(pool.map(ask, agents))
    assert sorted(codes) == [202] + [409] * 7


def test_the_same_session_id_is_another_session_in_another_tenant(
    stack: Stack, agent_id: str, foreign_agent_id: str
) -> None:
    session_id = new_session()
    for agent, message in ((agent_id, "ours"), (foreign_agent_id, "theirs")):
        stack.finished(stack.ask(agent, message, session_id=session_id)["task_id"])
    assert [message["text"] for message in stack.messages(session_id)] == ["ours", answer_text(2)]
    theirs = stack.messages(session_id, tenant="other")
    assert [message["text"] for message in theirs] == ["theirs", answer_text(2)]


def test_the_agent_decides_which_tenant_pays(
    stack: Stack, foreign_agent_id: str, nothing_stored: None
) -> None:
    """A tenant that is not the agent's answers exactly like an agent that does not exist."""
    answers = []
    for agent_id, tenant_id in ((foreign_agent_id, "demo"), (NOBODY, "demo"), (NOBODY, "nobody")):
        body = {"agent_id": agent_id, "message": "Hello", "tenant_id": tenant_id}
        response = stack.request("POST", SEND[0], json=body)
        assert response.status_code == 404
        answers.append(shape(response.json()))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["error"]["type"] == "AgentNotFound"


@pytest.mark.parametrize("path", SEND)
def test_a_refused_message_is_answered_by_an_action_result(stack: Stack, path: str) -> None:
    response = stack.request("POST", path, json={"agent_id": NOBODY, "message": "Hello"})
    assert response.status_code == 404
    assert action_result(response)["error"]["type"] == "AgentNotFound"


# --- Status -----------------------------------------------------------------------------------------


def test_the_status_of_a_completed_task_tells_everything(stack: Stack, done: dict[str, Any]) -> None:
    response = stack.request("GET", f"/api/v1/chat/status/{done['task_id']}?tenant_id=demo")
    assert response.status_code == 200
    result = action_result(response)["result"]
    assert result.keys() == {
        "task_id",
        "session_id",
        "status",
        "queue",
        "attempt",
        "created_at",
        "started_at",
        "finished_at",
        "output",
        "error",
    }
    assert result["task_id"] == done["task_id"]
    assert result["session_id"] == done["session_id"]
    assert result["status"] == "completed"
    assert result["queue"] == done["queue"]
    assert result["attempt"] == 1
    times = [datetime.fromisoformat(result[name]) for name in ("created_at", "started_at", "finished_at")]
    assert times == sorted(times)
    assert all(time.tzinfo is not None for time in times)
    assert result["error"] is None
    assert result["output"].keys() == {"text", "tool_calls", "citations", "usage"}
    assert result["output"]["text"] == answer_text(2)
    assert result["output"]["tool_calls"] == result["output"]["citations"] == []


def test_usage_is_what_the_provider_reported(stack: Stack) -> None:
    asked = stack.ask(stack.agent("fake?tokens=7"), "three little words")
    usage = stack.finished(asked["task_id"])["output"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 7)
    assert usage["accuracy"] == "exact"


def test_usage_that_the_provider_kept_to_itself_is_estimated(stack: Stack) -> None:
    asked = stack.ask(stack.agent("fake-no-usage?tokens=7"), "three little words")
    usage = stack.finished(asked["task_id"])["output"]["usage"]
    assert usage["prompt_tokens"] > 0 and usage["completion_tokens"] > 0
    assert usage["accuracy"] == "estimated"


def test_a_waiting_task_has_no_output_yet(stack: Stack, agent_id: str) -> None:
    with stack.agents_paused():
        asked = stack.ask(agent_id)
        state = stack.status(asked["task_id"])
    assert state["status"] in ("pending", "queued")
    assert state["attempt"] == 0
    assert [state[name] for name in ("started_at", "finished_at", "output", "error")] == [None] * 4
    assert stack.finished(asked["task_id"])["status"] == "completed"


def test_the_row_is_settled_before_the_run_is_said_to_have_ended(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        socket.until("agent_execution_completed")
        assert stack.status(asked["task_id"])["status"] == "completed"


@pytest.mark.parametrize("method_and_path", ["GET /api/v1/chat/status/{}", "POST /api/v1/chat/cancel/{}"])
@pytest.mark.parametrize("query", ["", "?tenant_id=demo", "?tenant_id=other", "?tenant_id=nobody"])
def test_an_unknown_task_is_not_found(stack: Stack, method_and_path: str, query: str) -> None:
    method, path = method_and_path.split()
    response = stack.request(method, path.format(NOBODY) + query)
    assert response.status_code == 404
    assert action_result(response)["error"]["type"] == "TaskNotFound"


@pytest.mark.parametrize("method_and_path", ["GET /api/v1/chat/status/{}", "POST /api/v1/chat/cancel/{}"])
def test_a_task_of_another_tenant_answers_like_one_that_does_not_exist(
    stack: Stack, done: dict[str, Any], method_and_path: str
) -> None:
    method, path = method_and_path.split()
    foreign = stack.request(method, path.format(done["task_id"]) + "?tenant_id=other")
    absent = stack.request(method, path.format(NOBODY) + "?tenant_id=other")
    assert foreign.status_code == absent.status_code == 404
    assert shape(foreign.json()) == shape(absent.json())
    assert foreign.headers.keys() == absent.headers.keys()


@pytest.mark.parametrize("bad", ["x", "1", "demo:1", "%00", "%0a", NOBODY + "0", "🙂", "%ff"])
def test_a_task_id_that_is_none_is_not_found(stack: Stack, bad: str) -> None:
    for response in (stack.request("GET", f"/api/v1/chat/status/{bad}"), stack.cancel(bad)):
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "TaskNotFound"


def test_a_callbacks_task_is_nobodys_business(stack: Stack, done: dict[str, Any]) -> None:
    """Only runs can be asked about: the platform's own tasks are not chat's."""
    query = "SELECT id FROM core_task WHERE global_task_id = %s AND action <> 'agent.execute'"
    ((callback_id,),) = stack.rows(query, done["task_id"])
    assert stack.request("GET", f"/api/v1/chat/status/{callback_id}").status_code == 404


# --- Aliases ----------------------------------------------------------------------------------------


def test_the_alias_of_status_answers_the_same(stack: Stack, done: dict[str, Any]) -> None:
    task_id = done["task_id"]
    for body in ({"task_id": task_id}, {"task_id": task_id, "tenant_id": "demo"}):
        alias = stack.request("POST", "/api/chat/status", json=body)
        canonical = stack.request("GET", f"/api/v1/chat/status/{task_id}")
        assert alias.status_code == canonical.status_code == 200
        assert shape(action_result(alias)) == shape(action_result(canonical))


def test_the_alias_of_cancel_answers_the_same(stack: Stack, done: dict[str, Any], agent_id: str) -> None:
    alias = stack.request("POST", "/api/chat/cancel", json={"task_id": done["task_id"]})
    assert alias.status_code == 409
    assert shape(action_result(alias)) == shape(stack.cancel(done["task_id"]).json())
    with stack.agents_paused():
        asked = [stack.ask(agent_id)["task_id"] for _ in range(2)]
        body = {"task_id": asked[0], "tenant_id": "demo"}
        alias = stack.request("POST", "/api/chat/cancel", json=body)
        canonical = stack.cancel(asked[1], params={"tenant_id": "demo"})
    assert alias.status_code == canonical.status_code == 200
    results = [action_result(response)["result"] for response in (alias, canonical)]
    assert [result.pop("task_id") for result in results] == asked
    assert results[0] == results[1]


@pytest.mark.parametrize("tenant_id", [None, "other", "nobody"])
@pytest.mark.parametrize(
    ("method", "canonical", "alias"),
    [
        ("GET", "/api/v1/chat/status/{}", "/api/chat/status"),
        ("POST", "/api/v1/chat/cancel/{}", "/api/chat/cancel"),
    ],
)
def test_aliases_refuse_as_the_canonical_paths_do(
    stack: Stack, method: str, canonical: str, alias: str, tenant_id: str | None
) -> None:
    fields = {"tenant_id": tenant_id} if tenant_id else {}
    first = stack.request(method, canonical.format(NOBODY), params=fields)
    second = stack.request("POST", alias, json={"task_id": NOBODY, **fields})
    assert first.status_code == second.status_code == 404
    assert shape(first.json()) == shape(second.json())


@pytest.mark.parametrize(
    "body",
    [{}, {"agent_id": NOBODY, "message": "x"}, {"agent_id": "x", "message": ""}, {"nonsense": 1}],
    ids=["nothing", "unknown agent", "bad values", "unknown field"],
)
def test_both_paths_of_a_message_refuse_alike(
    stack: Stack, body: dict[str, Any], nothing_stored: None
) -> None:
    first, second = (stack.request("POST", path, json=body) for path in SEND)
    assert first.status_code == second.status_code
    assert shape(first.json()) == shape(second.json())


# --- Languages --------------------------------------------------------------------------------------


def test_spanish_callers_are_answered_in_the_seeds_words(stack: Stack, done: dict[str, Any]) -> None:
    finished = stack.cancel(done["task_id"], language="es")
    assert finished.json()["error"]["message"] == "No se puede cancelar tarea en estado: completed"
    for language in ("es", "es-MX,es;q=0.9,en;q=0.1"):
        unknown = stack.request("GET", f"/api/v1/chat/status/{NOBODY}", language=language)
        assert unknown.json()["error"]["message"] == "Tarea no encontrada"


def test_a_cancel_is_confirmed_in_spanish(stack: Stack, agent_id: str) -> None:
    with stack.agents_paused():
        asked = stack.ask(agent_id)
        response = stack.cancel(asked["task_id"], language="es")
    assert response.json()["result"]["message"] == "Tarea cancelada exitosamente"


@pytest.mark.parametrize("language", [None, "en", "de", "xx", "*", "\xff\xfe"])
def test_everybody_else_is_answered_in_english(stack: Stack, language: str | None) -> None:
    response = stack.request("GET", f"/api/v1/chat/status/{NOBODY}", language=language)
    assert response.json()["error"]["message"].startswith("Task not found")


# --- What was said ----------------------------------------------------------------------------------


def test_messages_tell_the_conversation_in_order(stack: Stack) -> None:
    agent_id = stack.agent("echo", provider="scripted")
    first = stack.ask(agent_id, "one")
    stack.finished(first["task_id"])
    second = stack.ask(agent_id, "two", session_id=first["session_id"])
    stack.finished(second["task_id"])
    items = stack.messages(first["session_id"])
    assert [(item["role"], item["text"], item["task_id"]) for item in items] == [
        ("user", "one", first["task_id"]),
        ("assistant", "one", first["task_id"]),
        ("user", "two", second["task_id"]),
        ("assistant", "two", second["task_id"]),
    ]
    assert len({item["id"] for item in items}) == 4
    times = [datetime.fromisoformat(item["created_at"]) for item in items]
    assert times == sorted(times)


def test_messages_come_in_pages(stack: Stack, agent_id: str) -> None:
    asked = stack.ask(agent_id)
    stack.finished(asked["task_id"])
    stack.finished(stack.ask(agent_id, session_id=asked["session_id"])["task_id"])
    everything = stack.messages(asked["session_id"])
    path, pages, cursor = f"/api/v1/sessions/{asked['session_id']}/messages", [], None
    while True:
        params = {"limit": 1} | ({"cursor": cursor} if cursor else {})
        page = stack.request("GET", path, params=params, key=stack.demo.key).json()
        assert page.keys() == {"items", "next"}
        pages += page["items"]
        cursor = page["next"]
        if cursor is None:
            break
    assert pages == everything
    assert len(pages) == 4


def test_the_past_needs_a_token_or_a_key(stack: Stack, agent_id: str, done: dict[str, Any]) -> None:
    path = f"/api/v1/sessions/{done['session_id']}/messages"
    other = stack.ask(agent_id)["resume_token"]
    token = done["resume_token"]
    assert stack.request("GET", path, token=token).status_code == 200
    bad_tokens = [None, "", "x", other, token + "x", token[:-1], token.replace("demo", "other"), "~", "ñ"]
    for bad in bad_tokens:
        sent = bad.encode() if bad is not None else None
        response = stack.request("GET", path, token=sent)  # type: ignore[arg-type]
        assert response.status_code == 403, bad
    chats = stack.request("GET", path, key=stack.demo.keys["chats"])
    assert chats.status_code == 403
    foreign = stack.request("GET", path, key=stack.tenants["other"].key)
    absent = stack.request("GET", f"/api/v1/sessions/{new_session()}/messages", key=stack.demo.key)
    assert foreign.status_code == absent.status_code == 404
    assert shape(foreign.json()) == shape(absent.json())


def test_a_token_shows_the_same_messages_as_the_key(stack: Stack, done: dict[str, Any]) -> None:
    path = f"/api/v1/sessions/{done['session_id']}/messages"
    wait_for(lambda: len(stack.messages(done["session_id"])) == 2)
    shown = stack.request("GET", path, token=done["resume_token"]).json()["items"]
    assert shown == stack.messages(done["session_id"])
