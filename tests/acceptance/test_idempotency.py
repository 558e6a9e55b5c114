"""The same POST again: one task, one answer."""

from __future__ import annotations

import json
import secrets
import socket as sockets
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.acceptance.stack import Stack, new_model, new_session, wait_for

SEND, ALIAS = "/api/v1/chat/message", "/api/chat/send"
TABLE = "orchestrator_idempotencykey"


def new_key() -> str:
    return secrets.token_urlsafe(24)


def post(stack: Stack, agent_id: str, key: str, *, path: str = SEND, **fields: Any) -> requests.Response:
    api_key = fields.pop("api_key", None)
    body = {"agent_id": agent_id, "message": "Hello", **fields}
    return stack.request("POST", path, json=body, headers={"Idempotency-Key": key}, key=api_key)


def tasks_of(stack: Stack, agent_id: str) -> int:
    return int(stack.rows("SELECT count(*) FROM core_task WHERE agent_id = %s", agent_id)[0][0])


def is_kept(stack: Stack, key: str) -> bool:
    return bool(stack.rows(f"SELECT 1 FROM {TABLE} WHERE key = %s AND answer <> ''", key))


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=2")


@pytest.mark.parametrize("with_session", [True, False])
def test_fifty_at_once_are_one(stack: Stack, with_session: bool) -> None:
    model = new_model("fake?tokens=3")
    agent_id, key = stack.agent(model), new_key()
    session_id = new_session()
    fields = {"session_id": session_id} if with_session else {}
    with stack.socket(session_id) as socket, ThreadPoolExecutor(50) as pool:
        answers = list(
            pool.map(
                lambda number: post(stack, agent_id, key, path=(SEND, ALIAS)[number % 2], **fields), range(50)
            )
        )
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.content for answer in answers}) == 1
        result = answers[0].json()["result"]
        assert stack.finished(result["task_id"])["status"] == "completed"
        if with_session:
            socket.turn().check()
            assert stack.ask(agent_id, session_id=session_id)
            assert socket.turn().check()[0]["task_id"] != result["task_id"]
    assert len(stack.model.entries(model)) == 1 + with_session
    assert tasks_of(stack, agent_id) == 1 + with_session
    messages = stack.messages(result["session_id"])
    assert [message["role"] for message in messages] == ["user", "assistant"] * (1 + with_session)
    # Every one of the fifty can go on with what it was given.
    with stack.socket(result["session_id"], token=result["resume_token"], after=0) as again:
        again.turn().check()


def test_fifty_keys_at_once_are_fifty(stack: Stack, agent_id: str) -> None:
    before = tasks_of(stack, agent_id)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: post(stack, agent_id, new_key()), range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["result"]["task_id"] for answer in answers}) == 50
    assert tasks_of(stack, agent_id) == before + 50


def test_another_body_is_refused_and_another_tenant_is_another(stack: Stack, agent_id: str) -> None:
    key, session_id = new_key(), new_session()
    first = post(stack, agent_id, key, session_id=session_id)
    other = stack.agent("fake?tokens=2", tenant="other")
    stored = stack.stored()
    for fields in ({"message": "Other"}, {"metadata": {"page": 2}}):
        refused = post(stack, agent_id, key, session_id=session_id, **fields)
        assert (refused.status_code, refused.json()["error"]["type"]) == (409, "IdempotencyKeyReused")
    assert stack.stored() == stored
    foreign = post(stack, other, key, session_id=session_id)
    assert foreign.status_code == 202
    assert foreign.json()["result"]["task_id"] != first.json()["result"]["task_id"]
    assert post(stack, agent_id, key, session_id=session_id).content == first.content
    with_key = post(stack, agent_id, key, session_id=session_id, api_key=stack.demo.key)
    assert with_key.json()["result"]["task_id"] != first.json()["result"]["task_id"]


def test_a_day_later_the_key_begins_a_new_task(stack: Stack, agent_id: str) -> None:
    key = new_key()
    first = post(stack, agent_id, key).json()["result"]
    stack.rows(
        f"UPDATE {TABLE} SET created_at = created_at - INTERVAL '24 hours' WHERE key = %s RETURNING 1", key
    )
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post(stack, agent_id, key), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    [content] = {answer.content for answer in answers}
    assert json.loads(content)["result"]["task_id"] != first["task_id"]


def test_a_client_that_did_not_hear_its_answer_asks_again(stack: Stack, agent_id: str) -> None:
    """It vanishes after the commit and before it has read a byte."""
    key, before = new_key(), tasks_of(stack, agent_id)
    body = json.dumps({"agent_id": agent_id, "message": "Hello"}).encode()
    address = urlsplit(stack.base_url)
    head = (
        f"POST {SEND} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with sockets.create_connection((str(address.hostname), address.port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: is_kept(stack, key))
    [(kept,)] = stack.rows(f"SELECT answer FROM {TABLE} WHERE key = %s", key)
    again = post(stack, agent_id, key)
    assert (again.status_code, again.text) == (202, kept)
    assert tasks_of(stack, agent_id) == before + 1
    assert stack.finished(again.json()["result"]["task_id"])["status"] == "completed"


@pytest.mark.parametrize(
    "key",
    ["", "short", "x" * 21, "x" * 256, "ñandú-ñandú-ñandú-ñandú-ñandú", "a\tb" * 20, "\x7f" * 40],
    ids=lambda key: ascii(key)[:20],
)
@pytest.mark.parametrize("path", [SEND, ALIAS])
def test_a_bad_key_is_refused_by_name(
    stack: Stack, agent_id: str, nothing_stored: None, path: str, key: str
) -> None:
    body = json.dumps({"agent_id": agent_id, "message": "Hello"})
    headers: dict[str, Any] = {"Content-Type": "application/json", "Idempotency-Key": key.encode()}
    response = stack.request("POST", path, data=body, headers=headers)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["type"], [*error["details"]]) == ("ValidationFailed", ["Idempotency-Key"])


def test_a_refused_request_may_be_tried_again(stack: Stack, agent_id: str) -> None:
    key, session_id = new_key(), new_session()
    stack.ask(stack.agent("fake?tokens=2"), session_id=session_id)
    for _ in range(2):
        refused = post(stack, agent_id, key, session_id=session_id)
        assert (refused.status_code, refused.json()["error"]["type"]) == (409, "SessionBound")
    assert not is_kept(stack, key)
    stack.rows(
        "UPDATE conversations_session SET agent_id = %s WHERE key = %s RETURNING 1", agent_id, session_id
    )
    assert post(stack, agent_id, key, session_id=session_id).status_code == 202
