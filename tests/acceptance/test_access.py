"""Agents that are not open to all, over the real server: keys, end users' tokens, origins, resume tokens."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jwt
import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus

from core.events.groups import pubsub_channel, session_name
from tests.acceptance.stack import PROTOCOL, Socket, Stack, new_session, wait_for

GOOD = "https://good.com"
EVIL = ["null", "https://evil.com", "https://good.com.evil", "https://good.com:8443", "http://good.com"]


@pytest.fixture(scope="module")
def secret(stack: Stack) -> str:
    body = {"name": "acceptance"}
    made = stack.request("POST", "/api/v1/end-user-secrets", json=body, key=stack.tenants["demo"].key)
    assert made.status_code == 201, made.text
    text: str = made.json()["secret"]
    return text


@pytest.fixture(scope="module")
def foreign(stack: Stack) -> str:
    """A secret of another tenant's."""
    body = {"name": "acceptance"}
    made = stack.request("POST", "/api/v1/end-user-secrets", json=body, key=stack.tenants["other"].key)
    text: str = made.json()["secret"]
    return text


@pytest.fixture(scope="module")
def signed(stack: Stack) -> str:
    return stack.agent("fake?tokens=3", access="signed")


def token_of(secret: str, user: str = "ada", **claims: Any) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 300, **claims}, secret, algorithm="HS256")


def bad_tokens(secret: str, foreign: str) -> dict[str, str]:
    """Everything that must not open anything."""
    good = token_of(secret)
    _, body, signature = good.split(".")
    relabelled = base64.urlsafe_b64encode(b'{"alg":"RS256","typ":"JWT"}').rstrip(b"=").decode()
    claims = {"sub": "ada", "exp": int(time.time()) + 300}
    return {
        "expired": token_of(secret, exp=int(time.time()) - 61),
        "another tenant's": token_of(foreign),
        "no algorithm": jwt.encode(claims, None, algorithm="none"),
        "another algorithm": jwt.encode(claims, secret * 2, algorithm="HS512"),
        "relabelled": f"{relabelled}.{body}.{signature}",
        "unsigned": good.rpartition(".")[0] + ".",
        "without an end": jwt.encode({"sub": "ada"}, secret, algorithm="HS256"),
        "of nobody": jwt.encode({"exp": claims["exp"]}, secret, algorithm="HS256"),
        "of another session": token_of(secret, session_id="another"),
        "for another agent": token_of(secret, aud="another"),
        "nonsense": "a.b.c",
    }


def post(stack: Stack, agent_id: str, token: str | None = None, **options: Any) -> requests.Response:
    headers = options.pop("headers", {})
    body = {"agent_id": agent_id, "message": "Hello", **options}
    if token is not None:
        headers = {**headers, "Authorization": f"Bearer {token}"}
    return stack.request("POST", "/api/v1/chat/message", json=body, headers=headers)


def sent(response: requests.Response) -> dict[str, Any]:
    assert response.status_code == 202, response.text
    result: dict[str, Any] = response.json()["result"]
    return result


@contextmanager
def socket_of(stack: Stack, session_id: str, token: str | None, **options: Any) -> Iterator[Socket]:
    bearer = [f"nooble.bearer.{token}"] if token is not None else []
    with stack.socket(session_id, protocols=[PROTOCOL, *bearer], **options) as socket:
        yield socket


def closed(socket: Socket) -> tuple[str, int]:
    """The type of the one error event, and the close code."""
    event = socket.receive()
    assert event["event"] == "error", event
    with pytest.raises(ConnectionClosed):
        socket.receive()
    return event["data"]["type"], socket.closing()


def subscribers(stack: Stack, session_id: str) -> int:
    """How many processes listen for the session."""
    channel = pubsub_channel(session_name("demo", session_id))
    return int(stack.valkey.pubsub_numsub(channel)[0][1])


def test_a_turn_of_a_signed_agent(stack: Stack, signed: str, secret: str) -> None:
    session_id, token = new_session(), token_of(secret)
    with socket_of(stack, session_id, token) as socket:
        task = sent(post(stack, signed, token, session_id=session_id))
        socket.turn().check()
        said = socket.act("chat.send_message", agent_id=signed, message="And now?")
        assert said["success"], said
        socket.turn().check()
    headers = {"Nooble-Resume": task["resume_token"], "Authorization": f"Bearer {token}"}
    path = f"/api/v1/sessions/{session_id}/messages"
    past = stack.request("GET", path, headers=headers)
    assert [item["role"] for item in past.json()["items"]] == ["user", "assistant"] * 2
    del headers["Authorization"]
    assert stack.request("GET", path, headers=headers).status_code == 403


def test_bad_tokens_post_nothing(
    stack: Stack, signed: str, secret: str, foreign: str, nothing_stored: None
) -> None:
    assert post(stack, signed).status_code == 403
    found = {name: post(stack, signed, token) for name, token in bad_tokens(secret, foreign).items()}
    assert {name: answer.status_code in (401, 403) for name, answer in found.items()} == dict.fromkeys(
        found, True
    )
    assert {answer.json()["success"] for answer in found.values()} == {False}


def test_bad_tokens_hear_nothing(stack: Stack, signed: str, secret: str, foreign: str) -> None:
    session_id = new_session()
    sent(post(stack, signed, token_of(secret), session_id=session_id))
    tokens = {"none": None, "another user's": token_of(secret, "grace"), **bad_tokens(secret, foreign)}
    for name, token in tokens.items():
        with socket_of(stack, session_id, token) as socket:
            assert (socket.hello["event"], socket.closing()) == ("error", 4403), name
    assert subscribers(stack, session_id) == 0
    with socket_of(stack, session_id, token_of(secret)) as socket:
        assert socket.hello["event"] == "connection_established"
        assert subscribers(stack, session_id) == 1


@pytest.mark.parametrize("origin", EVIL)
def test_other_pages_are_refused_on_both_doors(stack: Stack, origin: str) -> None:
    agent_id = stack.agent("fake?tokens=3", allowed_origins=[GOOD])
    session_id = sent(post(stack, agent_id, headers={"Origin": GOOD}))["session_id"]
    answer = post(stack, agent_id, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "OriginRefused")
    with pytest.raises(InvalidStatus) as refused, stack.socket(session_id, origin=origin):
        pass
    assert refused.value.response.status_code == 403
    assert subscribers(stack, session_id) == 0
    for allowed in (GOOD, None):
        with stack.socket(session_id, origin=allowed) as socket:
            assert socket.lives()


def test_who_waited_without_proof_hears_nothing_of_it(stack: Stack, signed: str, secret: str) -> None:
    session_id, token = new_session(), token_of(secret)
    with (
        stack.socket(session_id) as stranger,
        socket_of(stack, session_id, token_of(secret, "grace")) as other,
        socket_of(stack, session_id, token) as owner,
    ):
        sent(post(stack, signed, token, session_id=session_id))
        assert closed(stranger) == ("ProofRequired", 4403)
        assert closed(other) == ("PermissionRefused", 4403)
        owner.turn().check()


def test_who_waited_on_another_page_hears_nothing_of_it(stack: Stack) -> None:
    agent_id = stack.agent("fake?tokens=3", allowed_origins=[GOOD])
    session_id = new_session()
    with (
        stack.socket(session_id, origin="https://evil.com") as stranger,
        stack.socket(session_id, origin=GOOD) as owner,
    ):
        sent(post(stack, agent_id, session_id=session_id))
        assert closed(stranger) == ("OriginRefused", 4403)
        owner.turn().check()


def test_a_key_agent(stack: Stack) -> None:
    agent_id = stack.agent("fake?tokens=3", access="key")
    keys = stack.tenants["demo"].keys
    assert post(stack, agent_id).status_code == 403
    assert post(stack, agent_id, keys["reads agents"]).status_code == 403
    assert post(stack, agent_id, keys["revoked"]).status_code == 401
    assert post(stack, agent_id, stack.tenants["other"].key).status_code == 403
    session_id = sent(post(stack, agent_id, keys["chats"]))["session_id"]
    for key in (None, keys["reads agents"], keys["revoked"]):
        with socket_of(stack, session_id, key) as socket:
            assert socket.closing() == 4403
    with socket_of(stack, session_id, keys["chats"]) as socket:
        assert socket.act("chat.send_message", agent_id=agent_id, message="Hello")["success"]
        socket.until("task_completed")


def test_a_session_that_needs_its_token(stack: Stack) -> None:
    agent_id = stack.agent("fake?tokens=3", require_resume_token=True)
    session_id = new_session()
    message = {"agent_id": agent_id, "message": "Hello"}
    with stack.socket(session_id) as waiting:
        token = sent(post(stack, agent_id, session_id=session_id))["resume_token"]
        waiting.turn().check()
        refused = waiting.act("chat.send_message", **message)
        assert refused["error"]["type"] == "ProofRequired"
    assert post(stack, agent_id, session_id=session_id).status_code == 403
    code, error = stack.refusal(session_id)
    assert (code, error["data"]["type"]) == (4403, "ProofRequired")
    with stack.socket(new_session()) as other:
        told = post(stack, agent_id, session_id=session_id, headers={"Nooble-Resume": other.token})
    assert told.status_code == 403
    sent(post(stack, agent_id, session_id=session_id, headers={"Nooble-Resume": token}))
    with stack.socket(session_id, token=token, after=0) as back:
        back.turn()
        assert back.act("chat.send_message", **message)["success"]


def test_random_session_ids_open_nothing(stack: Stack, signed: str) -> None:
    """Whoever guesses gets one answer, whether there is such a session or not."""
    path = "/api/v1/sessions/{}/messages"
    answers = {
        (answer.status_code, json.dumps(answer.json()["error"]["type"]))
        for _ in range(10)
        for answer in [stack.request("GET", path.format(secrets.token_urlsafe(16)))]
    }
    assert answers == {(403, '"PermissionRefused"')}


@pytest.mark.parametrize("whole", [False, True], ids=["agent", "tenant"])
def test_the_kill_switch(stack: Stack, whole: bool) -> None:
    """In force within a second: no new message, the run cancelled, the socket told; and lifted again."""
    tenant = stack.tenants["shelf"]
    agent_id = stack.agent("fake?tokens=50000", tenant="shelf")
    path = f"/api/v1/agents/{agent_id}"

    def switch(verb: str) -> None:
        if whole:
            action = f"Tenant{verb.capitalize()}Action(tenant_id='shelf')"
            names = "TenantSuspendAction, TenantUnsuspendAction"
            stack.shell(
                "from core.actions.bus import execute\n"
                f"from core.actions.suspension import {names}\n"
                f"execute({action})\nprint()"
            )
        else:
            answer = stack.request("POST", f"{path}/{verb}", json={}, key=tenant.key)
            assert answer.status_code == 200, answer.text

    running = sent(post(stack, agent_id))
    session_id = running["session_id"]
    with stack.socket(session_id, tenant="shelf", token=running["resume_token"], after=0) as socket:
        socket.until("agent_response_token")
        waiting = sent(post(stack, agent_id, session_id=session_id))
        switch("suspend")
        wait_for(lambda: post(stack, agent_id).status_code == 403)
        assert post(stack, agent_id).json()["error"]["type"] == "Suspended"
        assert socket.closing() == 4403
    for task in (running, waiting):
        assert stack.finished(task["task_id"])["status"] == "cancelled"
    code, error = stack.refusal(session_id, tenant="shelf")
    assert (code, error["data"]["type"]) == (4403, "Suspended")
    switch("unsuspend")
    wait_for(lambda: post(stack, agent_id).status_code == 202)
    with stack.socket(session_id, tenant="shelf") as socket:
        assert socket.lives()


@pytest.mark.parametrize("origin", ["null", "https://evil.example", f"{GOOD}.evil.example"])
def test_a_key_in_another_page_runs_nothing(stack: Stack, origin: str) -> None:
    agent_id = stack.agent("fake?tokens=3", allowed_origins=[GOOD])
    hello = [{"role": "user", "content": "Hello"}]
    for path, body in (
        ("/v1/chat/completions", {"model": agent_id, "messages": hello}),
        ("/api/v1/executions", {"agent_id": agent_id, "input": "Hello"}),
    ):
        statuses = {}
        for page in (origin, GOOD):
            answer = stack.request("POST", path, key=stack.demo.key, json=body, headers={"Origin": page})
            statuses[page] = answer.status_code
        assert statuses == {origin: 403, GOOD: 202 if "executions" in path else 200}
