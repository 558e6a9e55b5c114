"""Ids made to break out: refused at the edge; no row, no key in Valkey, no queue comes of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
import redis
import requests
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.ids import SESSION_PATTERN, SLUG_PATTERN
from core.queues.names import DOMAINS
from nooble.embedded import services_file
from tests.acceptance.stack import Socket, Stack, new_session
from tests.isolation.doors import patterns

SEND = "/api/v1/chat/message"
JSON = {"Content-Type": "application/json"}
NOBODY = "01a1f858-0000-7000-8000-000000000000"
PROPERTY = settings(max_examples=40)
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

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
A_SESSION = "[A-Za-z0-9_-]{1,64}"
A_SLUG = "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"
A_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
SESSIONS = HOSTILE.filter(lambda text: not re.fullmatch(A_SESSION, text))
SLUGS = HOSTILE.filter(lambda text: not re.fullmatch(A_SLUG, text))
UUIDS = HOSTILE.filter(lambda text: not re.fullmatch(A_UUID, text))

# Keys whose number does not grow with tenants, sessions or tasks, whatever comes in.
_domains = "|".join(DOMAINS)
OF_NOBODY = re.compile(
    rf"nooble:q:((?:{_domains}):[a-z_]+|[a-z_]+|w:[^:]+)|nooble:(probe|sockets|doctor:.*)"
    r"|nooble:metrics:(all|tenants|seen:[0-9]+-[0-9a-f]+)"
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
        f"/ws/tenants/{in_path(tenant)}/updates",
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


# --- Every route, as the schema has it ---------------------------------------------------------------

# What the public contract allows, by what the schema says of an id; numbers and cursors are the rest.
SPELLED = {SLUG_PATTERN: A_SLUG, SESSION_PATTERN: A_SESSION, "uuid": A_UUID}
EVERYWHERE = settings(max_examples=8)
NOT_IN_THE_SCHEMA = {
    "/chat/{agent_id}": "a page; asked above",
    "/v1/{rest}": "what is not there",
}


@dataclass(frozen=True)
class Slot:
    """One place of one operation where somebody's id stands: in its `path`, its `query` or its `body`."""

    method: str
    path: str
    place: str
    name: str
    kind: str

    def takes(self, text: str) -> bool:
        return re.fullmatch(SPELLED.get(self.kind, "[0-9a-f-]+"), text) is not None


def kind_of(schema: dict[str, Any]) -> str:
    """How the schema spells the id; empty for what is none."""
    options = [schema, *schema.get("anyOf", ())]
    kinds = [option.get("format") or option.get("pattern") or "" for option in options]
    return next((kind for kind in kinds if kind in SPELLED), "")


@pytest.fixture(scope="module")
def slots(stack: Stack) -> list[Slot]:
    schema = stack.request("GET", "/api/schema?format=json").json()
    found = []
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                place, kind = parameter["in"], kind_of(parameter["schema"])
                # What a body is read with, only some bodies are.
                if place == "path" or (place == "query" and kind and "requestBody" not in operation):
                    found.append(Slot(method, path, place, parameter["name"], kind))
            shapes = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            name = shapes.get("schema", {}).get("$ref", "").rpartition("/")[2]
            for field, about in schema["components"]["schemas"].get(name, {}).get("properties", {}).items():
                if kind := kind_of(about):
                    found.append(Slot(method, path, "body", field, kind))
    return found


@pytest.fixture(scope="module")
def service_token(stack: Stack) -> str:
    token: str = json.loads((stack.home / "secrets.json").read_text())["SERVICE_TOKEN"]
    return token


def test_every_route_that_names_something_is_asked(slots: list[Slot]) -> None:
    """A new one is, as soon as it is in the schema; what is not in there is named above."""
    routes = {"/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route) for route, _pattern in patterns()}
    named = {route for route in routes if "{" in route and not route.startswith("/admin/")}
    asked = {slot.path for slot in slots if slot.place == "path"}
    assert named - asked == NOT_IN_THE_SCHEMA.keys()
    places = Counter(slot.place for slot in slots)
    assert places["path"] > 50 and places["query"] > 10 and places["body"] > 15


@EVERYWHERE
@given(text=HOSTILE)
def test_every_id_of_every_operation(
    stack: Stack, agent_id: str, service_token: str, slots: list[Slot], text: str
) -> None:
    for slot in slots:
        if slot.takes(text):
            continue
        there = {"agent_id": agent_id, "session_id": new_session(), "number": "1", "name": "x"}
        ids = {name: there.get(name, NOBODY) for name in re.findall(r"{(\w+)}", slot.path)}
        if slot.place == "path":
            ids[slot.name] = in_path(text)
        path = re.sub(r"{(\w+)}", lambda found, ids=ids: ids[found[1]], slot.path)  # type: ignore[misc]
        if slot.place == "query":
            path += f"?{slot.name}={in_path(text)}"
        body = json.dumps({slot.name: text} if slot.place == "body" else {}, ensure_ascii=False).encode()
        key = service_token if slot.path.startswith("/internal/") else stack.demo.key
        response = stack.request(slot.method.upper(), path, key=key, data=body, headers=JSON)
        assert response.status_code in (404, 422), (slot, text, response.text[:300])
        error = response.json()["error"]
        if slot.place == "body":
            named = "body" if "\0" in text else slot.name  # no body may hold a NUL
            assert named in error["details"], (slot, text, error)
