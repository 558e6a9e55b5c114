"""Sockets that may not be, and frames that end one."""

from __future__ import annotations

import random

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.acceptance.stack import PROTOCOL, Socket, Stack, new_session

SEED = 20261120


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=3")


def refused_at(stack: Stack, path: str) -> tuple[int, dict[str, object]]:
    return stack.refusal("", url=stack.base_url.replace("http", "ws", 1) + path)


@pytest.mark.parametrize(
    "path",
    [
        "/ws/a:b/session",
        "/ws/demo/a:b",
        "/ws/demo/a%3Ab",
        "/ws/demo/%0a",
        "/ws/demo/session%0a",
        "/ws/demo/session%0d%0a",
        "/ws/demo/%00",
        "/ws/demo/%06%16",
        "/ws/demo/%1b",
        "/ws/demo/%7f",
        "/ws/demo/a%20b",
        "/ws/demo/*",
        "/ws/demo/%F0%9F%99%82",
        "/ws/demo/%C3%A9",
        "/ws/demo/" + "x" * 65,
        "/ws/demo/" + "x" * 5_000,
        "/ws/demo%0a/session",
        "/ws/%00/session",
        "/ws/DEMO/session",
        "/ws/-demo/session",
        "/ws/demo-/session",
        "/ws/_system/session",
        "/ws/" + "x" * 41 + "/session",
        "/ws/d%C3%A9mo/session",
    ],
)
def test_a_bad_id_is_refused_with_its_reason(stack: Stack, path: str, nothing_stored: None) -> None:
    code, error = refused_at(stack, path)
    assert code == 4400
    assert error.keys() == {"event", "data"}
    assert error["event"] == "error"


@pytest.mark.parametrize("path", ["/ws/demo/%FF", "/ws/%FF/x", "/ws/demo/%ED%A0%80", "/ws/demo/a%2Fb"])
def test_an_id_that_is_no_text_or_no_part_of_a_path_is_refused(stack: Stack, path: str) -> None:
    code, error = refused_at(stack, path)
    assert code in (4400, 4404)
    assert error["event"] == "error"


def test_the_longest_ids_pass(stack: Stack) -> None:
    for session_id in ("x" * 64, "-", "_", "0", "A-z_9"):
        with stack.socket(session_id) as socket:
            assert socket.hello["data"]["session_id"] == session_id


@pytest.mark.parametrize("tenant", ["nobody", "x", "demo2"])
def test_an_unknown_tenant_is_refused(stack: Stack, tenant: str) -> None:
    code, error = stack.refusal(new_session(), tenant=tenant)
    assert (code, error["event"]) == (4404, "error")
    assert error["data"]["type"] == "TenantNotFound"


@pytest.mark.parametrize("path", ["/", "/ws", "/ws/", "/ws/demo", "/ws/demo/", "/ws/demo/a/b", "/nothing"])
def test_an_address_that_is_no_socket_is_refused_with_a_reason(stack: Stack, path: str) -> None:
    code, error = refused_at(stack, path)
    assert code in (4400, 4404)
    assert error["event"] == "error"


@pytest.mark.parametrize(
    "query", ["", "user_id=ana", "user_id=", "user_id=%00", "user_id=%FF", "x=1&&=&%", "?"]
)
def test_a_user_id_and_other_queries_do_not_matter(stack: Stack, query: str) -> None:
    with stack.socket("", url=f"{stack.socket_url(new_session())}?{query}") as socket:
        assert socket.hello["event"] == "connection_established"
        assert socket.lives()


# --- Subprotocols -----------------------------------------------------------------------------------


@pytest.mark.parametrize("offered", [[PROTOCOL], ["other", PROTOCOL], [PROTOCOL, "other"]])
def test_the_protocol_is_picked_whenever_it_is_offered(stack: Stack, offered: list[str]) -> None:
    with stack.socket(new_session(), protocols=offered) as socket:
        assert socket.connection.subprotocol == PROTOCOL
        assert socket.hello["event"] == "connection_established"


def test_no_protocol_is_fine(stack: Stack) -> None:
    with stack.socket(new_session()) as socket:
        assert socket.connection.subprotocol is None


@pytest.mark.parametrize("offered", [["other"], ["nooble.v2"], ["NOOBLE.V1"]])
def test_only_other_protocols_are_refused(stack: Stack, offered: list[str]) -> None:
    code, error = stack.refusal(new_session(), protocols=offered)
    assert (code, error["event"]) == (4400, "error")


# --- Origins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "nonsense",
        "//example.com",
        "http://",
        "https://",
        "http:example.com",
        "https://example.com/",
        "https://example.com/path",
        "https://example.com?x",
        "https://example.com#x",
        "https://user@example.com",
        "https://user:word@example.com",
        "https://example.com:99999",
        "https://example.com:port",
        "https://exa mple.com",
        "https://example.com, https://evil.com",
        "https://[::1",
        "javascript:alert(1)",
        "data:text/html,x",
    ],
)
def test_an_origin_that_is_none_gets_403_at_the_handshake(stack: Stack, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused, stack.socket(new_session(), origin=origin):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "https://example.com",
        "http://example.com:8080",
        "http://localhost:3000",
        "http://127.0.0.1",
        "http://[::1]:8000",
        "https://sub.xn--bcher-kva.example",
    ],
)
def test_a_sound_origin_and_none_at_all_pass(stack: Stack, origin: str | None) -> None:
    with stack.socket(new_session(), origin=origin) as socket:
        assert socket.hello["event"] == "connection_established"


def test_an_origin_is_looked_at_before_anything_else(stack: Stack) -> None:
    with pytest.raises(InvalidStatus) as refused, stack.socket("a:b", tenant="nobody", origin="null"):
        pass
    assert refused.value.response.status_code == 403


# --- Frames -----------------------------------------------------------------------------------------


def ended(socket: Socket) -> tuple[str, int]:
    """The last event before the end, and the close code."""
    last = socket.receive()
    return last["event"], socket.closing()


@pytest.mark.parametrize("frame", [b"", b"\x00\x01", b'{"action": "ping"}'])
def test_a_binary_frame_ends_the_socket(stack: Stack, frame: bytes) -> None:
    with stack.socket(new_session()) as socket:
        socket.connection.send(frame)
        assert ended(socket) == ("error", 4400)


@pytest.mark.parametrize(
    "text", ["x" * 65_537, "é" * 32_769, "🙂" * 16_385, '{"action": "ping"}' + " " * 65_536]
)
def test_a_frame_over_64_kib_ends_the_socket(stack: Stack, text: str) -> None:
    with stack.socket(new_session()) as socket:
        socket.say(text)
        assert ended(socket) == ("error", 4413)


@pytest.mark.parametrize("text", ["x" * 65_536, "é" * 32_768, "🙂" * 16_384])
def test_a_frame_of_64_kib_does_not(stack: Stack, text: str) -> None:
    with stack.socket(new_session()) as socket:
        socket.say(text)
        assert socket.receive()["event"] == "error"
        assert socket.lives()


def test_a_frame_over_1_mib_is_closed_by_the_protocol(stack: Stack) -> None:
    with stack.socket(new_session()) as socket:
        socket.say("x" * (2**20 + 1))
        assert socket.closing() == 1009


def test_a_frame_of_10_mb_ends_only_its_own_socket(stack: Stack) -> None:
    with stack.socket(new_session()) as bystander:
        with stack.socket(new_session()) as socket:
            try:
                socket.say("x" * 10_000_000)
            except ConnectionClosed:
                pass  # the server did not wait for the rest
            assert socket.closing() in (1009, 1006)
        assert bystander.lives()


def test_fragments_are_measured_together(stack: Stack) -> None:
    with stack.socket(new_session()) as socket:
        socket.connection.send(iter(["x" * 20_000] * 4))
        assert ended(socket) == ("error", 4413)


def test_text_that_is_no_utf_8_is_closed_by_the_protocol(stack: Stack) -> None:
    with stack.socket(new_session()) as socket:
        socket.connection.send(b'{"action": "\xff"}', text=True)
        assert socket.closing() == 1007


def test_one_clients_nonsense_is_nobody_elses(stack: Stack, agent_id: str) -> None:
    """1,000 malformed frames over 20 sockets: each answered or the end of its socket; the others go on."""
    chance = random.Random(SEED)
    frames: list[bytes | str] = [
        "",
        "{",
        "[]",
        "null",
        '{"action": "nonsense"}',
        '{"action": "chat.send_message"}',
        '{"action": "chat.get_status", "task_id": "\\u0000"}',
        "[" * 5_000,
        "\x00" * 100,
        "x" * 65_536,
        "x" * 65_537,
        b"\x00",
        b"",
    ]
    session_id = new_session()
    with stack.socket(session_id) as bystander:
        sent = 0
        while sent < 1_000:
            with stack.socket(new_session()) as socket:
                for _ in range(50):
                    frame = chance.choice(frames)
                    socket.connection.send(frame)
                    sent += 1
                    answer = socket.answer()
                    ends = isinstance(frame, bytes) or len(frame) > 65_536
                    if ends:
                        assert answer["event"] == "error"
                        assert socket.closing() in (4400, 4413)
                        break
                    assert answer["event"] in ("error", "action_result"), f"seed {SEED}: {frame[:40]!r}"
        stack.ask(agent_id, session_id=session_id)
        bystander.turn().check()
