"""The session's socket: what it tells, in which order, and what a client may say."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest
from websockets.asyncio.client import connect

from bench.fake_model import answer_text
from tests.acceptance.stack import PATIENCE, PROTOCOL, Event, Stack, new_session, wait_for

NOBODY = "01a1f858-0000-7000-8000-000000000000"
EMOJI = "🙂 flag 🇪🇸 family 👩‍👩‍👧‍👦 é e\u0301 日本語 \U0001f600" * 20

ENVELOPE = {
    "event",
    "service",
    "event_id",
    "seq",
    "task_id",
    "global_task_id",
    "tenant_id",
    "session_id",
    "timestamp",
    "data",
}
FIELDS = {
    "agent_execution_started": {"agent_id", "version", "attempt"},
    "agent_response_token": {"token", "offset", "is_final"},
    "agent_execution_completed": {"text", "usage", "tool_calls", "citations", "finish_reason"},
    "agent_execution_failed": {"error", "error_type"},
    "task_failed": {"error", "error_type"},
    "task_status_update": {"status", "details"},
}


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=8&interval=0.002")


# --- What it tells ----------------------------------------------------------------------------------


def test_the_first_message_says_where_the_session_stands(stack: Stack) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        assert socket.hello.keys() == {"event", "data"}
        assert socket.hello["event"] == "connection_established"
        assert socket.hello["data"].keys() == {"session_id", "last_seq", "resume_token"}
        assert socket.hello["data"]["session_id"] == session_id
        assert socket.hello["data"]["last_seq"] == 0
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", socket.token)


def test_connecting_makes_no_session(stack: Stack, nothing_stored: None) -> None:
    with stack.socket(new_session()):
        pass


def test_seqs_are_dense_from_1_over_several_turns(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    heard: list[Event] = []
    with stack.socket(session_id) as socket:
        for _ in range(3):
            asked = stack.ask(agent_id, session_id=session_id)
            turn = socket.turn().check()
            assert {event["task_id"] for event in turn} == {asked["task_id"]}
            heard += turn
        assert socket.lives()
    assert [event["seq"] for event in heard] == list(range(1, len(heard) + 1))
    with stack.socket(session_id) as late:
        assert late.last_seq == len(heard)


@pytest.mark.parametrize("model", ["fake?tokens=8", "fake-401", "fake-endless?interval=0.005"])
def test_every_event_has_the_whole_envelope(stack: Stack, model: str) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(stack.agent(model), session_id=session_id)
        if "endless" in model:
            turn = socket.until("agent_response_token")
            stack.cancel(asked["task_id"])
            turn += socket.turn()
        else:
            turn = socket.turn()
    for event in turn.check():
        assert event.keys() == ENVELOPE
        by_the_run = event["event"].startswith("agent_")
        assert event["service"] == ("agent-execution" if by_the_run else "agent-orchestrator")
        assert uuid.UUID(event["event_id"])
        assert event["task_id"] == event["global_task_id"] == asked["task_id"]
        assert (event["tenant_id"], event["session_id"]) == ("demo", session_id)
        assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None
        assert event["data"].keys() == FIELDS.get(event["event"], event["data"].keys())


def test_what_started_is_named(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        stack.ask(agent_id, session_id=session_id)
        data = socket.turn().data("agent_execution_started")
    assert data == {"agent_id": agent_id, "version": 1, "attempt": 1}


def test_the_same_text_everywhere(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        turn = socket.turn().check()
    text = answer_text(8)
    completed = turn.data("agent_execution_completed")
    assert turn.text == completed["text"] == turn.data("task_completed")["text"] == text
    assert completed["finish_reason"] == "stop"
    assert completed["tool_calls"] == completed["citations"] == []
    output = stack.status(asked["task_id"])["output"]
    assert output["text"] == text
    assert output["usage"] == completed["usage"]
    assert [message["text"] for message in stack.messages(session_id)] == ["Hello", text]


def test_offsets_count_code_points(stack: Stack) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(stack.agent("fake-echo?interval=0.002"), EMOJI, session_id=session_id)
        turn = socket.turn().check()
    assert len(turn.named("agent_response_token")) > 2
    assert json.loads(turn.text) == [{"role": "user", "content": EMOJI}]
    assert stack.status(asked["task_id"])["output"]["text"] == turn.text


def test_an_empty_answer_is_an_answer(stack: Stack) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(stack.agent("fake?tokens=0"), session_id=session_id)
        turn = socket.turn().check()
    assert turn.data("agent_execution_completed")["text"] == ""
    assert stack.status(asked["task_id"])["output"]["text"] == ""


@pytest.mark.parametrize(
    ("model", "config", "reason"),
    [
        ("fake?tokens=9", {"max_output_tokens": 4}, "length"),
        ("fake?tokens=4&finish=length", {}, "length"),
        ("fake?tokens=4&finish=content_filter", {}, "content_filter"),
        ("fake-no-done?tokens=4", {}, "stop"),
        ("fake-hang?tokens=4", {}, "stop"),
        ("fake-reasoning?tokens=4", {}, "stop"),
    ],
)
def test_the_finish_reason_is_told(stack: Stack, model: str, config: dict[str, Any], reason: str) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        stack.ask(stack.agent(model, **config), session_id=session_id)
        completed = socket.turn().check().data("agent_execution_completed")
    assert (completed["text"], completed["finish_reason"]) == (answer_text(4), reason)


def test_every_socket_of_a_session_hears_the_same(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    with (
        stack.socket(session_id) as first,
        stack.socket(session_id) as second,
        stack.socket(session_id, protocols=[PROTOCOL]) as third,
    ):
        stack.ask(agent_id, session_id=session_id)
        turns = [socket.turn().check() for socket in (first, second, third)]
        assert all(socket.lives() for socket in (first, second, third))
    assert turns[0] == turns[1] == turns[2]


def test_who_joins_late_with_a_token_hears_the_same_text(stack: Stack) -> None:
    agent_id, session_id = stack.agent("fake-endless?interval=0.005"), new_session()
    with stack.socket(session_id) as first:
        asked = stack.ask(agent_id, session_id=session_id)
        heard = first.until("agent_response_token")
        heard += [first.receive() for _ in range(3)]
        with stack.socket(session_id, token=asked["resume_token"], after=0) as late:
            stack.cancel(asked["task_id"])
            heard += first.turn()
            assert late.turn().check() == heard.check()


def test_a_socket_hears_nothing_of_other_sessions(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    theirs = stack.agent("fake?tokens=3", tenant="other")
    with (
        stack.socket(session_id) as socket,
        stack.socket(session_id, tenant="other") as namesake,
        stack.socket(new_session()) as neighbour,
    ):
        stack.ask(agent_id, session_id=session_id)
        assert {event["tenant_id"] for event in socket.turn().check()} == {"demo"}
        stack.ask(theirs, session_id=session_id)
        assert {event["tenant_id"] for event in namesake.turn().check()} == {"other"}
        assert socket.lives() and namesake.lives()
        neighbour.say('{"action": "ping"}')
        assert neighbour.receive() == {"event": "pong"}


# --- What a client may say --------------------------------------------------------------------------


def test_a_whole_conversation_over_the_socket(stack: Stack) -> None:
    agent_id, session_id = stack.agent("fake-endless?interval=0.005"), new_session()
    with stack.socket(session_id) as socket:
        sent = socket.act("chat.send_message", agent_id=agent_id, message="Hello", action_id="first")
        assert sent.keys() == {"action_id", "success", "result", "error", "execution_time"}
        assert (sent["action_id"], sent["success"], sent["error"]) == ("first", True, None)
        result = sent["result"]
        assert result["session_id"] == session_id
        assert result["queue"] == "agent:demo:execute:normal"
        assert result["estimated_time"] > 0
        assert result["websocket_url"] == stack.socket_url(session_id)
        assert result["resume_token"]
        heard = socket.until("agent_response_token")
        task_id = result["task_id"]
        state = socket.act("chat.get_status", task_id=task_id, action_id="second")
        assert (state["action_id"], state["result"]["status"]) == ("second", "processing")
        stopped = socket.act("chat.cancel_task", task_id=task_id, action_id="third")
        assert (stopped["action_id"], stopped["result"]["status"]) == ("third", "cancelling")
        heard += socket.turn()
        assert heard.check().order().endswith("CX")
        state = socket.act("chat.get_status", task_id=task_id)
        assert state["action_id"]
        assert state["result"] == stack.status(task_id)
        refused = socket.act("chat.cancel_task", task_id=task_id)
        assert refused["error"]["type"] == "CannotCancel"


def test_only_the_first_message_of_a_socket_brings_a_token(stack: Stack, agent_id: str) -> None:
    with stack.socket(new_session()) as socket:
        first = socket.act("chat.send_message", agent_id=agent_id, message="Hello")
        second = socket.act("chat.send_message", agent_id=agent_id, message="Hello")
        assert "resume_token" in first["result"]
        assert "resume_token" not in second["result"]
        stack.finished(first["result"]["task_id"])
        stack.finished(second["result"]["task_id"])


def test_a_socket_answers_in_its_clients_language(stack: Stack) -> None:
    with stack.socket(new_session(), additional_headers={"Accept-Language": "es"}) as socket:
        refused = socket.act("chat.get_status", task_id=NOBODY)
    assert refused["error"]["message"] == "Tarea no encontrada"


def test_ping_is_answered_by_pong(stack: Stack) -> None:
    with stack.socket(new_session()) as socket:
        socket.say('{"action": "ping"}')
        assert socket.receive() == {"event": "pong"}
        socket.say('{"action": "ping", "action_id": "p-1"}')
        assert socket.receive()["event"] == "pong"


def test_the_server_pings_too(stack: Stack) -> None:
    with stack.socket(new_session()) as socket:
        for _ in range(2):
            assert json.loads(socket.connection.recv(timeout=PATIENCE)) == {"event": "ping"}


def test_a_message_in_fragments_is_one_message(stack: Stack) -> None:
    with stack.socket(new_session()) as socket:
        socket.connection.send(iter(['{"act', 'ion":', ' "ping"}']))
        assert socket.receive() == {"event": "pong"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "nonsense",
        "null",
        "5",
        '"ping"',
        "[]",
        '[{"action": "ping"}]',
        "NaN",
        '{"action": NaN}',
        '{"action": "ping", "at": 1e999}',
        '{"action": "ping"} {"action": "ping"}',
        "[" * 5_000 + "]" * 5_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        '{"action": "ping", "deep": ' + "[" * 5_000 + "]" * 5_000 + "}",
        "9" * 5_000,
        '{"action": "\\ud800"}',
        '{"action": "ping\\u0000"}',
        "x" * 65_536,
        "{}",
        '{"action": null}',
        '{"action": 5}',
        '{"action": []}',
        '{"action": {"ping": 1}}',
        '{"action": ""}',
        '{"action": "PING"}',
        '{"action": "chat.unknown"}',
        '{"action": "agent.create"}',
        '{"action": "agent.execute"}',
        '{"action": "websocket.broadcast", "event": "hacked", "data": {}}',
        '{"action": "websocket.send_message", "session_id": "x"}',
        '{"type": "websocket.disconnect"}',
        '{"type": "session.event", "tenant_id": "demo"}',
    ],
    ids=lambda text: text[:30] or "nothing",
)
def test_what_is_no_action_is_answered_by_an_error_and_the_socket_lives(
    stack: Stack, text: str, nothing_stored: None
) -> None:
    with stack.socket(new_session()) as socket:
        socket.say(text)
        error = socket.receive()
        assert error.keys() == {"event", "data"}
        assert error["event"] == "error"
        assert error["data"].keys() == {"type", "message", "details"}
        assert error["data"]["type"] in ("MalformedRequest", "ValidationFailed")
        assert socket.lives()


@pytest.mark.parametrize(
    ("frame", "error_type", "named"),
    [
        ({"action": "chat.send_message"}, "ValidationFailed", "agent_id"),
        ({"action": "chat.send_message", "message": ""}, "ValidationFailed", "message"),
        ({"action": "chat.send_message", "message": "x" * 32_769}, "ValidationFailed", "message"),
        ({"action": "chat.send_message", "nonsense": 1}, "ValidationFailed", "nonsense"),
        ({"action": "chat.send_message", "agent_id": "x"}, "ValidationFailed", "agent_id"),
        ({"action": "chat.send_message", "agent_id": 5}, "ValidationFailed", "agent_id"),
        ({"action": "chat.send_message", "agent_id": NOBODY}, "AgentNotFound", None),
        ({"action": "chat.send_message", "priority": "urgent"}, "ValidationFailed", "priority"),
        ({"action": "chat.send_message", "priority": None}, "ValidationFailed", "priority"),
        ({"action": "chat.send_message", "priority": []}, "ValidationFailed", "priority"),
        ({"action": "chat.send_message", "user_info": 5}, "ValidationFailed", "user_info"),
        ({"action": "chat.send_message", "metadata": []}, "ValidationFailed", "metadata"),
        ({"action": "chat.get_status"}, "ValidationFailed", "task_id"),
        ({"action": "chat.get_status", "task_id": 5}, "ValidationFailed", "task_id"),
        ({"action": "chat.get_status", "task_id": "x"}, "TaskNotFound", None),
        ({"action": "chat.get_status", "task_id": NOBODY}, "TaskNotFound", None),
        ({"action": "chat.get_status", "task_id": NOBODY, "nonsense": 1}, "ValidationFailed", "nonsense"),
        ({"action": "chat.cancel_task"}, "ValidationFailed", "task_id"),
        ({"action": "chat.cancel_task", "task_id": NOBODY}, "TaskNotFound", None),
        ({"action": "chat.cancel_task", "only_if_queued": "perhaps"}, "ValidationFailed", "only_if_queued"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else str(value),
)
def test_a_bad_action_is_answered_by_a_failed_result_and_the_socket_lives(
    stack: Stack,
    agent_id: str,
    frame: dict[str, Any],
    error_type: str,
    named: str | None,
    nothing_stored: None,
) -> None:
    whole = {"agent_id": agent_id, "message": "Hello"} if frame["action"] == "chat.send_message" else {}
    if named in whole and named not in frame:
        del whole[named]
    with stack.socket(new_session()) as socket:
        fields = {key: value for key, value in (whole | frame).items() if key != "action"}
        refused = socket.act(frame["action"], action_id="mine", **fields)
        assert socket.lives()
    assert (refused["action_id"], refused["success"], refused["result"]) == ("mine", False, None)
    assert refused["error"].keys() == {"type", "message", "details"}
    assert refused["error"]["type"] == error_type
    assert named is None or named in refused["error"]["details"]
    assert isinstance(refused["execution_time"], float)


@pytest.mark.parametrize("message", ["a\\u0000b", "a\\ud800b", "\\udc00"])
def test_text_that_cannot_be_stored_is_refused_over_the_socket(
    stack: Stack, agent_id: str, message: str, nothing_stored: None
) -> None:
    with stack.socket(new_session()) as socket:
        socket.say(f'{{"action": "chat.send_message", "agent_id": "{agent_id}", "message": "{message}"}}')
        assert socket.answer()["event"] in ("error", "action_result")
        assert socket.lives()


@pytest.mark.parametrize("action_id", [5, "", "x" * 65, ["x"], None, {"a": 1}])
def test_an_action_id_that_is_none_is_refused(stack: Stack, action_id: object, nothing_stored: None) -> None:
    with stack.socket(new_session()) as socket:
        refused = socket.act("chat.get_status", task_id=NOBODY, action_id=action_id)
        assert refused["success"] is False
        assert "action_id" in refused["error"]["details"]
        assert socket.lives()


def test_a_socket_speaks_only_for_its_own_session_and_tenant(
    stack: Stack, agent_id: str, nothing_stored: None
) -> None:
    agents = stack.request("GET", "/api/v1/agents", key=stack.tenants["other"].key).json()["items"]
    foreign = agents[0]["agent_id"] if agents else stack.agent("fake", tenant="other")
    with stack.socket(new_session()) as socket:
        message = {"agent_id": agent_id, "message": "Hello"}
        for fields in (
            message | {"session_id": new_session()},
            message | {"tenant_id": "other"},
            message | {"tenant_id": "nobody"},
            message | {"agent_id": foreign},
            message | {"agent_id": foreign, "tenant_id": "other"},
        ):
            assert socket.act("chat.send_message", **fields)["success"] is False
        assert socket.lives()


def test_a_task_of_another_tenant_is_not_found_over_a_socket(stack: Stack) -> None:
    theirs = stack.ask(stack.agent("fake?tokens=1", tenant="other"))["task_id"]
    stack.finished(theirs)
    with stack.socket(new_session()) as socket:
        for action in ("chat.get_status", "chat.cancel_task"):
            for fields in ({}, {"tenant_id": "other"}):
                assert socket.act(action, task_id=theirs, **fields)["success"] is False


def test_a_session_bound_to_another_agent_is_a_conflict_over_a_socket(stack: Stack, agent_id: str) -> None:
    asked = stack.ask(agent_id)
    stack.finished(asked["task_id"])
    another = stack.agent("fake?tokens=1")
    with stack.socket(asked["session_id"]) as socket:
        refused = socket.act("chat.send_message", agent_id=another, message="Hello")
        assert refused["success"] is False
        kept = socket.act("chat.send_message", agent_id=agent_id, message="Hello")
        assert kept["success"] is True
        socket.turn().check()


# --- Many -------------------------------------------------------------------------------------------


async def test_500_sockets_can_connect_at_once(stack: Stack) -> None:
    limit = 500

    async def hello(number: int) -> Any:
        url = stack.socket_url(new_session())
        socket = await connect(url, proxy=None, compression=None, open_timeout=60)
        return socket, json.loads(await socket.recv())

    opened = await asyncio.gather(*(hello(number) for number in range(limit)))
    try:
        assert {first["event"] for _, first in opened} == {"connection_established"}
        assert len({first["data"]["session_id"] for _, first in opened}) == limit
    finally:
        await asyncio.gather(*(socket.close() for socket, _ in opened))


BROADCAST = """
from core.actions.bus import enqueue
from core.tenancy import tenant_scope
from orchestrator.actions import WebSocketBroadcastAction

for tenant, fields in {calls!r}:
    with tenant_scope(tenant):
        enqueue(WebSocketBroadcastAction(**fields))
"""


def test_a_broadcast_reaches_the_tenants_open_sockets_and_no_others(stack: Stack, agent_id: str) -> None:
    session_id, quiet_id = new_session(), new_session()
    everybody = {"event": "maintenance", "data": {"at": "noon"}}
    named = {"event": "notice", "data": {"for": "one"}, "session_ids": (session_id,)}
    with (
        stack.socket(session_id) as one,
        stack.socket(quiet_id) as two,
        stack.socket(session_id, tenant="other") as foreign,
    ):
        stack.shell(BROADCAST.format(calls=[("demo", everybody), ("demo", named)]))
        heard = {event["event"]: event for event in one.take(2)}
        assert heard.keys() == {"maintenance", "notice"}
        assert heard["maintenance"]["data"] == {"at": "noon"}
        assert heard["maintenance"]["service"] == "agent-orchestrator"
        assert heard["maintenance"]["tenant_id"] == "demo"
        # What is for one session is kept in its log, with a seq.
        assert (heard["notice"]["seq"], heard["notice"]["session_id"]) == (1, session_id)
        assert two.receive()["event"] == "maintenance"
        two.say('{"action": "ping"}')
        assert two.receive() == {"event": "pong"}
        foreign.say('{"action": "ping"}')
        assert foreign.receive() == {"event": "pong"}
        # A turn after it goes on with the next seq.
        stack.ask(agent_id, session_id=session_id)
        assert one.turn().check()[0]["seq"] == 2


def test_the_number_of_open_sockets_is_told(stack: Stack) -> None:
    wait_for(lambda: connections(stack), equal_to=0)
    with stack.socket(new_session()), stack.socket(new_session(), tenant="other"):
        wait_for(lambda: connections(stack), equal_to=2)
        with stack.socket(new_session()):
            wait_for(lambda: connections(stack), equal_to=3)
        wait_for(lambda: connections(stack), equal_to=2)
    wait_for(lambda: connections(stack), equal_to=0)


def connections(stack: Stack) -> int:
    stats = stack.request("GET", "/ws/stats")
    assert stats.status_code == 200
    return int(stats.json()["connections"])


def test_clients_that_leave_in_the_middle_of_an_answer_break_nothing(stack: Stack) -> None:
    """Politely, 100 times while frames are on their way: the log tells of no exception."""
    agent_id, session_id = stack.agent("fake-endless?interval=0.001"), new_session()
    asked = stack.ask(agent_id, session_id=session_id)

    def leave(_: int) -> None:
        with stack.socket(session_id, token=asked["resume_token"], after=0) as socket:
            socket.until("agent_response_token")

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(leave, range(100)))
    stack.cancel(asked["task_id"])
    assert stack.finished(asked["task_id"])["status"] == "cancelled"
    wait_for(lambda: connections(stack), equal_to=0)


def test_sockets_that_vanish_without_a_goodbye_leave_nothing_behind(stack: Stack) -> None:
    """20 sockets of one session are reset in the middle of its answer; the last one hears all of it."""
    agent_id, session_id = stack.agent("fake?tokens=60&interval=0.01"), new_session()
    with stack.socket(session_id) as bystander:
        before = connections(stack)
        with ExitStack() as cleanup:
            victims = [cleanup.enter_context(stack.socket(session_id)) for _ in range(20)]
            stack.ask(agent_id, session_id=session_id)
            for victim in victims:
                victim.until("agent_response_token")
                victim.vanish()
        assert bystander.turn().check().text == answer_text(60)
        wait_for(lambda: connections(stack), equal_to=before)
        # The pings go on, too: two of them, since one may have been on its way.
        heard = [json.loads(bystander.connection.recv(timeout=PATIENCE)) for _ in range(2)]
        assert heard == [{"event": "ping"}] * 2
