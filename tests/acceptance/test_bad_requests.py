"""Bad input over HTTP: the right refusal in the one shape, nothing stored, nobody else disturbed."""

from __future__ import annotations

import json
import re
import socket as sockets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.acceptance.stack import Socket, Stack, new_session

SEND = "/api/v1/chat/message"
JSON = {"Content-Type": "application/json"}
MIB = 2**20
NOBODY = "01a1f858-0000-7000-8000-000000000000"
# Where bodies are read: method, path, and whether it takes the key.
DOORS = [
    ("POST", "/api/v1/chat/message", False),
    ("POST", "/api/chat/send", False),
    ("POST", "/api/chat/status", False),
    ("POST", "/api/chat/cancel", False),
    ("POST", f"/api/v1/chat/cancel/{NOBODY}", False),
    ("POST", "/api/v1/agents", True),
    ("PATCH", "/api/v1/agents/{agent}", True),
]
NO_JSON = [
    b"{",
    b"nonsense",
    b"{'message': 'x'}",
    b'{"message": NaN}',
    b'{"message": Infinity}',
    b'{"message": 1e999999}',
    b'{"message": "\xff\xfe"}',
    b'{"message": "\xed\xa0\x80"}',
    b'{"message": "\\ud800"}',
    b'{"message": "x"',
    b'{"message": "x"} trailing',
    b'{"message": "line\nbreak"}',
    b"\xef\xbb\xbf{}x",
    b"\x00",
    b"[" * 5_000 + b"]" * 5_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    b'{"metadata": ' + b"[" * 100 + b"]" * 100 + b"}",
    b"[" * 100_000,
]


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=3")


@pytest.fixture(scope="module")
def task_id(stack: Stack, agent_id: str) -> str:
    """A task that has completed."""
    asked = stack.ask(agent_id)
    stack.finished(asked["task_id"])
    return str(asked["task_id"])


@pytest.fixture(scope="module")
def bystander(stack: Stack, agent_id: str) -> Iterator[Socket]:
    """A socket that is open all the while, and completes a turn when all is over."""
    session_id = new_session()
    with stack.socket(session_id) as socket:
        yield socket
        stack.ask(agent_id, session_id=session_id)
        turn = socket.turn().check()
        assert turn[0]["seq"] == 1
        assert turn.order().endswith("Cc")


@pytest.fixture(autouse=True)
def undisturbed(bystander: Socket, task_id: str, nothing_stored: None) -> Iterator[None]:
    yield
    assert bystander.lives()


def refused(response: requests.Response, *statuses: int) -> dict[str, Any]:
    """The error of a refusal, which must have the one shape."""
    assert response.status_code in statuses, (response.status_code, response.text[:500])
    assert response.headers["Content-Type"].startswith("application/json")
    body = response.json()
    assert {"success", "error", "request_id"} <= body.keys()
    assert body["success"] is False
    assert body["error"].keys() == {"type", "message", "details"}
    assert body["error"]["type"].isidentifier()
    assert body["error"]["message"]
    assert body["request_id"] and body["request_id"] == response.headers["X-Request-ID"]
    assert "Traceback" not in response.text
    error: dict[str, Any] = body["error"]
    return error


def knock(stack: Stack, agent_id: str, door: tuple[str, str, bool], **options: Any) -> requests.Response:
    method, path, keyed = door
    key = stack.demo.key if keyed else None
    return stack.request(method, path.replace("{agent}", agent_id), key=key, **options)


# --- Bodies that are no JSON of ours ----------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[1]}")
@pytest.mark.parametrize(
    "data",
    NO_JSON,
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_json_is_malformed(
    stack: Stack, agent_id: str, door: tuple[str, str, bool], data: bytes
) -> None:
    refused(knock(stack, agent_id, door, data=data, headers=JSON), 400)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[1]}")
@pytest.mark.parametrize("data", [b"[]", b"null", b"5", b'"text"', b"true", b'[{"message": "x"}]'])
def test_a_body_that_is_no_object_is_refused(
    stack: Stack, agent_id: str, door: tuple[str, str, bool], data: bytes
) -> None:
    refused(knock(stack, agent_id, door, data=data, headers=JSON), 400, 422)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[1]}")
def test_nul_can_stand_nowhere(stack: Stack, agent_id: str, door: tuple[str, str, bool]) -> None:
    for data in (b'{"message": "a\\u0000b"}', b'{"a\\u0000b": 1}', b'{"metadata": {"x": ["\\u0000"]}}'):
        refused(knock(stack, agent_id, door, data=data, headers=JSON), 400, 422)


def test_every_body_is_read_with_the_same_care(stack: Stack) -> None:
    """Whatever operation the schema has: what the doors above refuse, all of them do."""
    paths = stack.request("GET", "/api/schema?format=json").json()["paths"]
    readers = [
        (method.upper(), path)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "requestBody" in operation
    ]
    assert len(readers) > 25
    service_token = json.loads((stack.home / "secrets.json").read_text())["SERVICE_TOKEN"]
    hostile = [*NO_JSON, b"[]", b"null", b'{"a": "\\u0000"}', b'{"a\\u0000b": 1}', b'{"a": 1e300}']
    for method, path in readers:
        address = re.sub(r"{(\w+)}", lambda found: "x" if found[1] == "name" else NOBODY, path)
        key = service_token if path.startswith("/internal/") else stack.demo.key
        for data in hostile:
            response = stack.request(method, address, key=key, data=data, headers=JSON)
            assert response.status_code in (400, 422), (method, path, data[:24], response.text[:300])
        response = stack.request(method, address, key=key, data=b"<a/>", headers={"Content-Type": "text/xml"})
        assert response.status_code == 415, (method, path, response.text[:300])


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[1]}")
def test_numbers_without_end_are_refused(stack: Stack, agent_id: str, door: tuple[str, str, bool]) -> None:
    refused(knock(stack, agent_id, door, data=b'{"priority": ' + b"9" * 5_000 + b"}", headers=JSON), 400, 422)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[1]}")
@pytest.mark.parametrize("size", [256 * 1024 + 1, 10_000_000])
def test_a_body_above_256_kib_is_too_large(
    stack: Stack, agent_id: str, door: tuple[str, str, bool], size: int
) -> None:
    data = b'{"message": "' + b"x" * (size - 15) + b'"}'
    assert len(data) == size
    refused(knock(stack, agent_id, door, data=data, headers=JSON), 413)


def test_a_body_of_256_kib_is_read(stack: Stack, agent_id: str) -> None:
    padding = 256 * 1024 - len(json.dumps({"agent_id": NOBODY, "message": "x"}))
    data = json.dumps({"agent_id": NOBODY, "message": "x"}).encode() + b" " * padding
    refused(stack.request("POST", SEND, data=data, headers=JSON), 404)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[1]}")
@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/xml",
        "application/octet-stream",
        "nonsense",
        None,
    ],
)
def test_a_body_of_another_type_is_refused(
    stack: Stack, agent_id: str, door: tuple[str, str, bool], content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    refused(knock(stack, agent_id, door, data=b'{"message": "x"}', headers=headers), 415)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[1]}")
def test_forms_with_files_are_refused(stack: Stack, agent_id: str, door: tuple[str, str, bool]) -> None:
    refused(knock(stack, agent_id, door, files={"message": ("name.txt", b"x")}), 415)


def test_a_broken_form_breaks_nothing(stack: Stack) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(stack.request("POST", SEND, data=b"nonsense", headers=headers), 415)


@pytest.mark.parametrize("content_type", [None, "text/plain", "multipart/form-data; boundary=x", "nonsense"])
def test_an_empty_body_is_read_whatever_its_type(
    stack: Stack, agent_id: str, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    error = refused(stack.request("POST", SEND, data=b"", headers=headers), 422)
    assert error["details"].keys() == {"agent_id", "message"}
    refused(stack.cancel(NOBODY, data=b"", headers=headers), 404)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_may_be_spelled_as_usual(stack: Stack, content_type: str) -> None:
    data = json.dumps({"agent_id": NOBODY, "message": "x"})
    response = stack.request("POST", SEND, data=data, headers={"Content-Type": content_type})
    refused(response, 404)


def test_a_body_in_chunks_is_read_like_any_other(stack: Stack) -> None:
    """Clients that stream their bodies name no length."""
    parts = [b'{"agent_id": "', NOBODY.encode(), b'", "message": "x"}']
    refused(stack.request("POST", SEND, data=iter(parts), headers=JSON), 404)
    refused(stack.request("POST", SEND, data=iter([b"{", b"nonsense"]), headers=JSON), 400)


def test_a_body_in_chunks_has_the_same_limit(stack: Stack) -> None:
    parts = [b'{"message": "', *[b"x" * 65_536] * 8, b'"}']
    refused(stack.request("POST", SEND, data=iter(parts), headers=JSON), 413)


@pytest.mark.parametrize(
    ("path", "head", "body"),
    [
        (SEND, f"Content-Length: {30 * MIB}", b"{"),
        (SEND, f"Content-Length: {30 * MIB}\r\nExpect: 100-continue", b""),
        (SEND, "Transfer-Encoding: chunked", b"10000\r\n%b\r\n" % (b"x" * 2**16) * 5),
        ("/api/v1/batch", f"Content-Length: {33 * MIB}", b"{"),
        ("/nowhere", f"Content-Length: {MIB}", b"{"),
        ("/admin/login/", f"Content-Length: {3 * MIB}", b"x"),
    ],
    ids=["by its length", "before it is sent", "in chunks", "beyond what is large", "nowhere", "a form"],
)
def test_what_is_too_large_is_not_waited_for(stack: Stack, path: str, head: str, body: bytes) -> None:
    """Nor kept: the answer is there while the client has most of it still to send."""
    address = urlsplit(stack.base_url)
    with sockets.create_connection((str(address.hostname), address.port), timeout=30) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}"
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        answer = b""
        while more := connection.recv(65_536):
            answer += more
        # And it can go on sending, so that it will read the answer.
        connection.sendall(b"x" * MIB)
    status, _, told = answer.partition(b"\r\n")
    if path in (SEND, "/api/v1/batch"):
        assert status == b"HTTP/1.1 413 Request Entity Too Large"
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["type"] == "BodyTooLarge"
    assert status.startswith(b"HTTP/1.1 4")
    assert b"Connection: close\r\n" in told


def test_nobody_moves_the_site_elsewhere(stack: Stack) -> None:
    """Daphne has a header for its proxy to say where the site stands; a client's is not read."""
    headers = {"Daphne-Root-Path": "/elsewhere"}
    assert stack.request("GET", "/elsewhere/health", headers=headers).status_code == 404
    assert stack.request("GET", "/health", headers=headers).ok


@pytest.mark.parametrize("length", ["x", "-1", "1e3", "", "9" * 40])
def test_a_content_length_that_is_none_breaks_nothing(stack: Stack, length: str) -> None:
    address = urlsplit(stack.base_url)
    with sockets.create_connection((str(address.hostname), address.port), timeout=30) as connection:
        head = f"POST {SEND} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {length}\r\nConnection: close\r\n\r\n".encode())
        connection.shutdown(sockets.SHUT_WR)
        answer = connection.recv(65_536)
    # An answer of the 4xx kind, or none at all: never a 500.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


# --- Fields -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"message": None}, "message"),
        ({"message": ""}, "message"),
        ({"message": "x" * 32_769}, "message"),
        ({"message": "🙂" * 20_000 + "x" * 12_769}, "message"),
        ({"message": 5}, "message"),
        ({"message": ["x"]}, "message"),
        ({"message": {"text": "x"}}, "message"),
        ({"agent_id": None}, "agent_id"),
        ({"agent_id": "x"}, "agent_id"),
        ({"agent_id": 5}, "agent_id"),
        ({"agent_id": "demo:1"}, "agent_id"),
        ({"agent_id": ""}, "agent_id"),
        ({"tenant_id": "a:b"}, "tenant_id"),
        ({"tenant_id": ""}, "tenant_id"),
        ({"tenant_id": "DEMO"}, "tenant_id"),
        ({"tenant_id": "demo\n"}, "tenant_id"),
        ({"tenant_id": "_system"}, "tenant_id"),
        ({"tenant_id": "x" * 41}, "tenant_id"),
        ({"tenant_id": 5}, "tenant_id"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": "a:b"}, "session_id"),
        ({"session_id": "a\n"}, "session_id"),
        ({"session_id": "\u0006\u0016"}, "session_id"),
        ({"session_id": "a b"}, "session_id"),
        ({"session_id": "*"}, "session_id"),
        ({"session_id": "a,b"}, "session_id"),
        ({"session_id": "é"}, "session_id"),
        ({"session_id": "x" * 65}, "session_id"),
        ({"session_id": 5}, "session_id"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": "HIGH"}, "priority"),
        ({"priority": ""}, "priority"),
        ({"priority": 10}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": None}, "priority"),
        ({"priority": []}, "priority"),
        ({"priority": {}}, "priority"),
        ({"priority": "5"}, "priority"),
        ({"user_info": "ana"}, "user_info"),
        ({"user_info": []}, "user_info"),
        ({"user_info": {"user_id": 5}}, "user_info.user_id"),
        ({"user_info": {"user_id": "x" * 256}}, "user_info.user_id"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": []}, "metadata"),
        ({"action_id": "mine", "verb": "x"}, "verb"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_bad_field_of_a_message_is_named(
    stack: Stack, agent_id: str, fields: dict[str, Any], named: str
) -> None:
    body = {"agent_id": agent_id, "message": "Hello"} | fields
    data = json.dumps(body, ensure_ascii=False).encode()
    error = refused(stack.request("POST", SEND, data=data, headers=JSON), 422)
    assert error["type"] == "ValidationFailed"
    assert named in error["details"]


@pytest.mark.parametrize("path", ["/api/chat/status", "/api/chat/cancel"])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "task_id"),
        ({"task_id": 5}, "task_id"),
        ({"task_id": None}, "task_id"),
        ({"task_id": NOBODY, "nonsense": 1}, "nonsense"),
        ({"task_id": NOBODY, "tenant_id": "a:b"}, "tenant_id"),
        ({"task_id": NOBODY, "tenant_id": 5}, "tenant_id"),
    ],
)
def test_a_bad_field_of_an_alias_is_named(
    stack: Stack, path: str, fields: dict[str, Any], named: str
) -> None:
    error = refused(stack.request("POST", path, json=fields), 422)
    assert named in error["details"]


@pytest.mark.parametrize("fields", [{"nonsense": 1}, {"only_if_queued": "perhaps"}, {"user_id": "x" * 256}])
def test_a_bad_field_of_a_cancel_is_named(stack: Stack, task_id: str, fields: dict[str, Any]) -> None:
    error = refused(stack.cancel(task_id, json=fields), 422)
    assert error["details"].keys() == fields.keys()


@pytest.mark.parametrize("flag", ["perhaps", "", "2", "%00"])
def test_a_flag_is_true_or_false(stack: Stack, flag: str) -> None:
    refused(stack.request("POST", f"/api/v1/chat/cancel/{NOBODY}?only_if_queued={flag}"), 422, 404)


def test_an_unknown_agent_is_not_found(stack: Stack) -> None:
    error = refused(stack.request("POST", SEND, json={"agent_id": NOBODY, "message": "x"}), 404)
    assert error["type"] == "AgentNotFound"


@pytest.mark.parametrize("tenant_id", ["other", "nobody", "x"])
def test_a_foreign_tenant_is_not_found(stack: Stack, agent_id: str, tenant_id: str) -> None:
    body = {"agent_id": agent_id, "message": "x", "tenant_id": tenant_id}
    refused(stack.request("POST", SEND, json=body), 404)


@pytest.mark.parametrize("tenant", ["a:b", "%00", "%0a", "%ff", "_system", "x" * 400, "DEMO"])
def test_a_tenant_in_the_query_that_is_none_is_no_ones(stack: Stack, tenant: str) -> None:
    for method, verb in (("GET", "status"), ("POST", "cancel")):
        refused(stack.request(method, f"/api/v1/chat/{verb}/{NOBODY}?tenant_id={tenant}"), 404, 422)


@pytest.mark.parametrize("session_id", ["a:b", "%00", "%0a", "x" * 65, "%F0%9F%99%82", "a%20b"])
def test_messages_of_a_session_that_cannot_be_are_refused(stack: Stack, session_id: str) -> None:
    path = f"/api/v1/sessions/{session_id}/messages"
    refused(stack.request("GET", path, key=stack.demo.key), 404, 422)
    refused(stack.request("GET", path), 403, 404, 422)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=201", "cursor=x", "cursor=-1", "cursor=%00"])
def test_a_bad_page_of_messages_is_refused_by_name(stack: Stack, query: str) -> None:
    path = f"/api/v1/sessions/{new_session()}/messages?{query}"
    error = refused(stack.request("GET", path, key=stack.demo.key), 422)
    assert query.partition("=")[0] in error["details"]


# --- Methods and paths ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/chat/message"),
        ("PUT", "/api/v1/chat/message"),
        ("DELETE", "/api/v1/chat/message"),
        ("PATCH", "/api/chat/send"),
        ("GET", "/api/chat/status"),
        ("GET", "/api/chat/cancel"),
        ("POST", f"/api/v1/chat/status/{NOBODY}"),
        ("GET", f"/api/v1/chat/cancel/{NOBODY}"),
        ("DELETE", "/api/v1/agents"),
        ("POST", f"/api/v1/agents/{NOBODY}"),
        ("POST", "/api/v1/sessions/x/messages"),
        ("POST", "/health"),
        ("DELETE", "/health/detailed"),
        ("POST", "/ws/stats"),
        ("POST", "/api/schema"),
        ("POST", "/api/docs"),
        ("POST", "/asyncapi.json"),
        ("BREW", "/api/v1/chat/message"),
    ],
)
def test_a_wrong_method_is_not_allowed(stack: Stack, method: str, path: str) -> None:
    response = stack.request(method, path, key=stack.demo.key)
    refused(response, 405)
    assert response.headers["Allow"]


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/api",
        "/api/v1",
        "/api/v1/nothing",
        "/api/v1/chat",
        "/api/v1/chat/status",
        "/api/v1/chat/status/",
        "/api/v1/chat/message/",
        "/api/v1/agents/x/nothing",
        "/api/v2/chat/message",
        "/%00",
        "/%ff",
        "/a%0d%0ab",
        "/" + "x" * 4_000,
        "/../../etc/passwd",
        "/static/../manage.py",
        "/static/nothing.js",
    ],
    ids=lambda path: path[:30],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_not_found_in_the_one_shape(stack: Stack, method: str, path: str) -> None:
    refused(stack.request(method, path), 404)


def test_a_request_keeps_the_id_that_its_caller_gave(stack: Stack) -> None:
    for given in ("mine-1", "x" * 64):
        response = stack.request("GET", "/nothing", headers={"X-Request-ID": given})
        refused(response, 404)
        assert response.json()["request_id"] == given
    for bad in ("a b", "x" * 65, "<script>", "a:b"):
        response = stack.request("GET", "/nothing", headers={"X-Request-ID": bad})
        refused(response, 404)
        assert response.json()["request_id"] != bad


def test_a_host_that_is_not_ours_is_refused(stack: Stack) -> None:
    body = {"agent_id": NOBODY, "message": "x"}
    refused(stack.request("POST", SEND, json=body, headers={"Host": "evil.example"}), 400)
