"""A session's life as its tenant and its clients see it, over real HTTP and sockets."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.acceptance.stack import FINAL, PATIENCE, Stack, new_model, new_session, wait_for

DELETIONS = 20


def manage(stack: Stack, method: str, path: str = "", *, status: int = 200, **options: Any) -> Any:
    """What management is answered."""
    response = stack.request(method, f"/api/v1/sessions{path}", key=stack.demo.key, **options)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


def speak(stack: Stack, agent_id: str, session_id: str) -> requests.Response:
    body = {"agent_id": agent_id, "message": "Hello", "session_id": session_id}
    return stack.request("POST", "/api/v1/chat/message", json=body)


def traces(stack: Stack, session_id: str) -> dict[str, int]:
    """Rows in which the session can still be found."""
    tables = {
        "sessions": "conversations_session WHERE key = %s",
        "tasks": "core_task WHERE session_id = %s OR payload::text LIKE %s",
        "usage": "core_usagerecord WHERE session_id = %s",
        "keys": "orchestrator_idempotencykey WHERE answer LIKE %s",
    }
    found = {}
    for name, table in tables.items():
        values = {
            "tasks": (session_id, f"%{session_id}%"),
            "keys": (f"%{session_id}%",),
        }.get(name, (session_id,))
        found[name] = stack.rows(f"SELECT count(*) FROM {table}", *values)[0][0]
    return found


NOTHING = {"sessions": 0, "tasks": 0, "usage": 0, "keys": 0}


def test_a_session_from_its_beginning_to_its_end(stack: Stack) -> None:
    model = new_model("fake?tokens=2")
    agent_id = stack.agent(model, instructions="Order {{order}}, for {{name}}.")
    made = manage(
        stack,
        "POST",
        json={
            "agent_id": agent_id,
            "context": {"order": "7"},
            "user_info": {"user_id": "ada", "name": "Ada"},
        },
        status=201,
    )
    session_id = made["session_id"]
    assert made["state"] == "created"
    with stack.socket(session_id, token=made["resume_token"], after=0) as socket:
        assert speak(stack, agent_id, session_id).status_code == 202
        assert socket.turn().check().text == "tok0 tok1"
        shown = manage(stack, "GET", f"/{session_id}")
        assert (shown["state"], shown["title"]) == ("active", "Hello")
        assert shown["user_info"] == {"user_id": "ada", "name": "Ada"}
        manage(stack, "PATCH", f"/{session_id}", json={"title": "Order 7", "context": {"name": "Ada"}})
        assert speak(stack, agent_id, session_id).status_code == 202
        socket.turn()
        instructions = [entry["messages"][0]["content"] for entry in stack.model.entries(model)]
        assert instructions == ["Order 7, for {{name}}.", "Order 7, for Ada."]
        closed = manage(stack, "POST", f"/{session_id}/close")
        assert (closed["state"], closed["title"]) == ("closed", "Order 7")
        event = socket.receive()
        assert (event["event"], event["data"].keys()) == ("session_closed", {"ended_at"})
        refused = speak(stack, agent_id, session_id)
        assert (refused.status_code, refused.json()["error"]["type"]) == (409, "SessionClosed")
        result = socket.act("chat.send_message", agent_id=agent_id, message="Still there?")
        assert result["error"]["type"] == "SessionClosed"
        # Its past can still be read.
        assert socket.lives()
    items = manage(stack, "GET", f"?state=closed&user_id=ada&agent_id={agent_id}")["items"]
    assert [item["session_id"] for item in items] == [session_id]
    assert len(stack.messages(session_id)) == 4


def test_a_session_is_taken_away_as_a_file(stack: Stack) -> None:
    session_id = new_session()
    asked = stack.ask(stack.agent("fake?tokens=2"), "¿Qué tal? 🎈", session_id=session_id)
    stack.finished(asked["task_id"])
    whole = manage(stack, "GET", f"/{session_id}/export")
    assert whole["session"]["session_id"] == session_id
    assert [message["text"] for message in whole["messages"]] == ["¿Qué tal? 🎈", "tok0 tok1"]
    assert whole["messages"] == stack.messages(session_id)
    path = f"/api/v1/sessions/{session_id}/export?format=markdown"
    response = stack.request("GET", path, key=stack.demo.key, language="es", headers={"Accept": "text/html"})
    assert response.headers["Content-Type"] == "text/markdown; charset=utf-8"
    assert response.headers["Content-Disposition"] == f'attachment; filename="session-{session_id}.md"'
    assert "> ¿Qué tal? 🎈\n" in response.text
    assert "**Usuario, " in response.text


def test_nothing_of_a_deleted_session_is_left(stack: Stack) -> None:
    agent_id = stack.agent("fake?tokens=3")
    body = {"agent_id": agent_id, "message": "Hello", "user_info": {"user_id": "ada-of-the-deleted"}}
    headers = {"Idempotency-Key": "a-key-that-is-hard-to-guess"}
    response = stack.request("POST", "/api/v1/chat/message", json=body, headers=headers)
    asked = response.json()["result"]
    session_id, token = asked["session_id"], asked["resume_token"]
    with stack.socket(session_id, token=token, after=0) as socket:
        socket.turn().check()
        usage = stack.rows("SELECT count(*) FROM core_usagerecord WHERE session_id = %s", session_id)
        wait_for(lambda: traces(stack, session_id)["tasks"] == 2 and stack.status(asked["task_id"]))
        manage(stack, "DELETE", f"/{session_id}", status=204)
        error = socket.receive()
        assert (error["event"], error["data"]["type"]) == ("error", "SessionNotFound")
        assert socket.closing() == 4404
    assert traces(stack, session_id) == NOTHING
    assert stack.rows("SELECT count(*) FROM core_usagerecord WHERE end_user = 'ada-of-the-deleted'") == [(0,)]
    assert usage == [(1,)]
    manage(stack, "GET", f"/{session_id}", status=404)
    assert stack.request("GET", f"/api/v1/chat/status/{asked['task_id']}").status_code == 404
    path = f"/api/v1/sessions/{session_id}/messages"
    assert stack.request("GET", path, token=token).status_code == 404
    with stack.socket(session_id, token=token, after=0) as socket:
        assert socket.last_seq == 0
        assert socket.lives()
    manage(stack, "DELETE", f"/{session_id}", status=404)


def test_a_session_is_deleted_under_a_running_answer(stack: Stack) -> None:
    model, session_id = new_model("fake-endless?interval=0.01"), new_session()
    agent_id = stack.agent(model)
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        stack.ask(agent_id, session_id=session_id)  # waits behind it
        socket.until("agent_response_token")
        manage(stack, "DELETE", f"/{session_id}", status=204)
        assert socket.closing() == 4404
    manage(stack, "GET", f"/{session_id}", status=404)
    path = f"/api/v1/sessions/{session_id}/messages"
    assert stack.request("GET", path, key=stack.demo.key).status_code == 404
    # As soon as its worker has stopped, nothing is left, and the id is free.
    wait_for(lambda: traces(stack, session_id), equal_to=NOTHING)
    assert stack.request("GET", f"/api/v1/chat/status/{asked['task_id']}").status_code == 404
    assert stack.model.entry(model)["model"] == model
    with stack.socket(session_id) as socket:
        assert socket.last_seq == 0
        assert speak(stack, stack.agent("fake?tokens=1"), session_id).status_code == 202
        assert socket.turn().check()[0]["seq"] == 1
    assert len(stack.messages(session_id)) == 2


def test_one_persons_sessions(stack: Stack) -> None:
    agent_id = stack.agent("fake?tokens=1")
    ours = [stack.ask(agent_id, user_info={"user_id": "grace"}) for _ in range(3)]
    theirs = stack.ask(agent_id, user_info={"user_id": "alan"})
    for asked in (*ours, theirs):
        stack.finished(asked["task_id"])
    assert manage(stack, "DELETE", "?user_id=grace") == {"deleted": 3}
    for asked in ours:
        wait_for(lambda asked=asked: traces(stack, asked["session_id"]), equal_to=NOTHING)  # type: ignore[misc]
    assert manage(stack, "GET", f"/{theirs['session_id']}")["state"] == "active"


def test_a_task_streamed_to_somebody_ends_with_its_session(stack: Stack) -> None:
    """The stream of Server-Sent Events ends, instead of waiting for an end that nobody tells."""
    agent_id = stack.agent("fake-endless?interval=0.01")
    asked = stack.ask(agent_id)
    with stack.request("GET", f"/api/v1/chat/stream/{asked['task_id']}", stream=True) as stream:
        lines = stream.iter_lines()
        while b"agent_response_token" not in next(lines):
            pass
        manage(stack, "DELETE", f"/{asked['session_id']}", status=204)
        for _line in lines:
            pass


def test_a_closed_session_keeps_what_its_run_had_said(stack: Stack) -> None:
    model, session_id = new_model("fake-stall?tokens=4&interval=0"), new_session()
    agent_id = stack.agent(model)
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        socket.until("agent_response_token")
        manage(stack, "POST", f"/{session_id}/close")
        names = [event["event"] for event in socket.turn()]
    assert "session_closed" in names
    assert stack.finished(asked["task_id"])["status"] in FINAL
    answer = stack.messages(session_id)[-1]
    assert (answer["role"], answer["finish_reason"]) == ("assistant", "cancelled")
    assert answer["text"]


@pytest.mark.parametrize("state", ["idle", "expired"])
def test_a_round_of_the_platforms_own_changes_what_is_silent(stack: Stack, state: str) -> None:
    """As if nobody had said anything for a while, or for a month: the worker sees it, and a message."""
    agent_id, session_id = stack.agent("fake?tokens=1"), new_session()
    asked = stack.ask(agent_id, session_id=session_id)
    stack.finished(asked["task_id"])
    span = {"idle": "31 minutes", "expired": "31 days"}[state]
    stack.rows(
        "UPDATE conversations_session SET created_at = now() - %s::interval,"
        " last_active_at = now() - %s::interval WHERE key = %s RETURNING id",
        span,
        span,
        session_id,
    )
    stack.shell(
        f"from celery import current_app; current_app.send_task('conversations.round'); print({state!r})"
    )
    wait_for(lambda: manage(stack, "GET", f"/{session_id}")["state"], equal_to=state)
    again = speak(stack, agent_id, session_id)
    if state == "idle":
        assert again.status_code == 202
        assert manage(stack, "GET", f"/{session_id}")["state"] == "active"
    else:
        assert (again.status_code, again.json()["error"]["type"]) == (409, "SessionExpired")


def test_messages_and_deletions_at_once(stack: Stack) -> None:
    """Nobody waits for ever, nothing breaks, and in the end nothing is left."""
    agent_id, session_id = stack.agent("fake?tokens=3"), new_session()
    done = threading.Event()

    def talk(_number: int) -> set[int]:
        answers = set()
        while not done.is_set():
            answers.add(speak(stack, agent_id, session_id).status_code)
        return answers

    def delete() -> set[int]:
        answers = set()
        for _ in range(DELETIONS):
            path = f"/api/v1/sessions/{session_id}"
            answers.add(stack.request("DELETE", path, key=stack.demo.key).status_code)
        return answers

    with ThreadPoolExecutor(5) as threads:
        talking = [threads.submit(talk, number) for number in range(4)]
        try:
            deleted = threads.submit(delete).result(timeout=PATIENCE)
        finally:
            done.set()
        said = set().union(*(future.result(timeout=PATIENCE) for future in talking))
    assert (said | {202, 409}, deleted | {204, 404}) == ({202, 409}, {204, 404})
    assert 204 in deleted
    path = f"/api/v1/sessions/{session_id}"
    wait_for(lambda: stack.request("DELETE", path, key=stack.demo.key).status_code, equal_to=404)
    wait_for(lambda: traces(stack, session_id), equal_to=NOTHING)


def test_the_schema_knows_the_sessions(stack: Stack) -> None:
    schema = json.loads(stack.request("GET", "/api/schema?format=json").text)
    paths = {path: set(methods) for path, methods in schema["paths"].items() if "/sessions" in path}
    assert paths == {
        "/api/v1/sessions": {"get", "post", "delete"},
        "/api/v1/sessions/{session_id}": {"get", "patch", "delete"},
        "/api/v1/sessions/{session_id}/close": {"post"},
        "/api/v1/sessions/{session_id}/export": {"get"},
        "/api/v1/sessions/{session_id}/messages": {"get"},
    }
