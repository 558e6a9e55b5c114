"""Ids made to break out: refused at the edge; no row, no key in Valkey, no queue comes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import redis
import requests
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.queues.names import DOMAINS
from nooble.embedded import services_file
from tests.acceptance.stack import Socket, Stack, new_session

SEND = "/api/v1/chat/message"
JSON = {"Content-Type": "application/json"}
NOBODY = "01a1f858-0000-7000-8000-000000000000"
PROPERTY = settings(max_examples=40)

PIECES = [
    *(":", "::", "*", "?", "[a-z]", ",", "|", "{", "}", "{x}", "..", "/", "\\", "%", "%00", "$", "#", ";"),
    *("\x06\x16", "\0", "\r\n", "\n", "\t", "\x1b[31m", "\x7f", "\u2028", "\u202e", "\ufeff", " "),
    *("🙂", "é", "Ａ", "ı", "٣", "'", '"', "`", "<script>", "' OR 1=1 --", "nooble:q:agent:m:", "_system"),
    *("demo", "agent:demo:execute:normal", "celery", "x" * 65, NOBODY[:-1]),
]
HOSTILE = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    st.sampled_from(PIECES).map(lambda piece: (piece * 5_000)[:5_000]),
)
# What the public contract allows.
SESSIONS = HOSTILE.filter(lambda text: not re.fullmatch("[A-Za-z0-9_-]{1,64}", text))
SLUGS = HOSTILE.filter(lambda text: not re.fullmatch("[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", text))
UUIDS = HOSTILE.filter(lambda text: not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))

# Keys whose number does not grow with tenants, sessions or tasks, whatever comes in.
_domains = "|".join(DOMAINS)
OF_NOBODY = re.compile(
    rf"nooble:q:((?:{_domains}):[a-z_]+|[a-z_]+|w:[^:]+)|nooble:(probe|sockets|doctor:.*)"
    r"|_kombu\..*|unacked.*|celery.*"
)


def in_path(text: str) -> str:
    """As a path's part, within what the server takes as a path at all."""
    assume(text not in (".", ".."))  # a client resolves these before it asks
    return quote(text[:400], safe="")


@pytest.fixture(scope="module")
def valkey(stack: Stack) -> Iterator[redis.Redis]:
    url = json.loads(services_file(stack.home).read_text())["urls"]["redis_url"]
    with redis.Redis.from_url(url) as client:
        yield client


def traces(valkey: redis.Redis) -> set[str]:
    """Every key of somebody, and everybody who has a place in the queues."""
    names = {key.decode(errors="replace") for key in valkey.scan_iter(count=1_000)}
    found = {name for name in names if not OF_NOBODY.fullmatch(name)}
    for domain in DOMAINS:
        members = [
            *valkey.zrange(f"nooble:q:{domain}:waiting", 0, -1),
            *valkey.zrange(f"nooble:q:{domain}:ring", 0, -1),
            *valkey.smembers(f"nooble:q:{domain}:capped"),
            *valkey.hkeys(f"nooble:q:{domain}:finish"),
            *valkey.hkeys(f"nooble:q:{domain}:running"),
        ]
        found |= {f"{domain} {member.decode(errors='replace')}" for member in members}
    return {name for name in found if "_system" not in name}


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=2")


@pytest.fixture(scope="module")
def bystander(stack: Stack, agent_id: str) -> Iterator[Socket]:
    """It has had a turn, and has another when all is over."""
    session_id = new_session()
    with stack.socket(session_id) as socket:
        stack.ask(agent_id, session_id=session_id)
        socket.turn().check()
        yield socket
        stack.ask(agent_id, session_id=session_id)
        assert socket.turn().check().order().endswith("Cc")


@pytest.fixture(autouse=True)
def traceless(stack: Stack, bystander: Socket, valkey: redis.Redis, nothing_stored: None) -> Iterator[None]:
    before = traces(valkey)
    letters = valkey.llen("nooble:q:dead")
    yield
    assert traces(valkey) <= before
    assert valkey.llen("nooble:q:dead") == letters
    assert bystander.lives()


def refused(response: requests.Response, *statuses: int) -> None:
    assert response.status_code in statuses, (response.status_code, response.text[:300])
    body = response.json()
    assert body["success"] is False
    assert body["error"].keys() == {"type", "message", "details"}


def post(stack: Stack, path: str, body: dict[str, Any], **options: Any) -> requests.Response:
    data = json.dumps(body, ensure_ascii=False).encode()
    return stack.request("POST", path, data=data, headers=JSON, **options)


def test_what_is_watched_would_show_a_stranger(
    stack: Stack, agent_id: str, valkey: redis.Redis, bystander: Socket
) -> None:
    """The other tests look at something: a new session is seen at once."""
    before = traces(valkey)
    valkey.zadd("nooble:q:agent:waiting", {"a:b": 1})
    valkey.set("nooble:log:{a:b}", 1)
    assert traces(valkey) - before == {"agent a:b", "nooble:log:{a:b}"}
    valkey.zrem("nooble:q:agent:waiting", "a:b")
    valkey.delete("nooble:log:{a:b}")


@PROPERTY
@given(text=SESSIONS)
def test_a_session_in_a_message(stack: Stack, agent_id: str, text: str) -> None:
    refused(post(stack, SEND, {"agent_id": agent_id, "message": "x", "session_id": text}), 422)


@PROPERTY
@given(text=SLUGS)
def test_a_tenant_in_a_message(stack: Stack, agent_id: str, text: str) -> None:
    refused(post(stack, SEND, {"agent_id": agent_id, "message": "x", "tenant_id": text}), 422)


@PROPERTY
@given(text=UUIDS)
def test_an_agent_in_a_message(stack: Stack, text: str) -> None:
    refused(post(stack, "/api/chat/send", {"agent_id": text, "message": "x"}), 422)


@PROPERTY
@given(text=SLUGS)
def test_a_slug_of_a_new_agent(stack: Stack, text: str) -> None:
    config = {"provider": "scripted", "model": "echo"}
    body = {"name": "x", "type": "x", "slug": text, "config": config}
    refused(post(stack, "/api/v1/agents", body, key=stack.demo.key), 422)


@PROPERTY
@given(text=UUIDS)
def test_a_task(stack: Stack, text: str) -> None:
    refused(stack.request("GET", f"/api/v1/chat/status/{in_path(text)}"), 404)
    refused(stack.request("POST", f"/api/v1/chat/cancel/{in_path(text)}"), 404)
    for path in ("/api/chat/status", "/api/chat/cancel"):
        refused(post(stack, path, {"task_id": text}), 404, 422)


@PROPERTY
@given(text=SLUGS)
def test_a_tenant_of_a_task(stack: Stack, text: str) -> None:
    for method, verb in (("GET", "status"), ("POST", "cancel")):
        path = f"/api/v1/chat/{verb}/{NOBODY}?tenant_id={in_path(text)}"
        refused(stack.request(method, path), 404, 422)
    for path in ("/api/chat/status", "/api/chat/cancel"):
        refused(post(stack, path, {"task_id": NOBODY, "tenant_id": text}), 422)


@PROPERTY
@given(text=SESSIONS)
def test_a_sessions_messages(stack: Stack, text: str) -> None:
    path = f"/api/v1/sessions/{in_path(text)}/messages"
    refused(stack.request("GET", path, key=stack.demo.key), 404)
    refused(stack.request("GET", path), 403, 404)


@PROPERTY
@given(text=UUIDS)
def test_an_agent_in_a_path(stack: Stack, text: str) -> None:
    path = f"/api/v1/agents/{in_path(text)}"
    for method in ("GET", "PATCH", "DELETE"):
        refused(stack.request(method, path, key=stack.demo.key, json={}), 404)
    assert stack.request("GET", f"/chat/{in_path(text)}").status_code == 404


@PROPERTY
@given(tenant=SLUGS, session_id=SESSIONS)
def test_a_sockets_address(stack: Stack, tenant: str, session_id: str) -> None:
    base = stack.base_url.replace("http", "ws", 1)
    for path in (
        f"/ws/{in_path(tenant)}/{new_session()}",
        f"/ws/demo/{in_path(session_id)}",
        f"/ws/{in_path(tenant)}/{in_path(session_id)}",
    ):
        code, error = stack.refusal("", url=base + path)
        assert code in (4400, 4404)
        assert error["event"] == "error"


@PROPERTY
@given(session_id=SESSIONS, tenant=SLUGS, uuid=UUIDS)
def test_ids_that_a_socket_sends(
    stack: Stack, agent_id: str, session_id: str, tenant: str, uuid: str
) -> None:
    actions: list[tuple[str, dict[str, Any]]] = [
        ("chat.send_message", {"agent_id": agent_id, "message": "x", "session_id": session_id}),
        ("chat.send_message", {"agent_id": agent_id, "message": "x", "tenant_id": tenant}),
        ("chat.send_message", {"agent_id": uuid, "message": "x"}),
        ("chat.get_status", {"task_id": uuid}),
        ("chat.cancel_task", {"task_id": uuid}),
        ("chat.cancel_task", {"task_id": NOBODY, "tenant_id": tenant}),
    ]
    with stack.socket(new_session()) as socket:
        for action, fields in actions:
            socket.say(json.dumps({"action": action, **fields}))
            answer = socket.answer()
            assert answer["event"] == "error" or answer["data"]["success"] is False
