"""A task's events as Server-Sent Events: the same words as over a WebSocket, from any point, to the end."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis
import requests

from bench.fake_model import answer_text
from core.events.groups import session_name
from nooble.embedded import services_file
from tests.acceptance.stack import PATIENCE, Event, Stack, Turn, is_last, new_model, new_session, wait_for

NOBODY = "01a1f858-0000-7000-8000-000000000000"


class Stream:
    """One open stream; `comments` counts what keeps it open."""

    def __init__(self, response: requests.Response) -> None:
        self.response = response
        self.comments = 0
        self._blocks = self._read()

    def _read(self) -> Iterator[bytes]:
        unread = b""
        for chunk in self.response.iter_content(chunk_size=None):
            unread += chunk
            while b"\n\n" in unread:
                block, _, unread = unread.partition(b"\n\n")
                yield block
        assert unread == b""

    def __iter__(self) -> Iterator[tuple[str | None, str]]:
        """`(id, data)` of each event up to the end of the stream."""
        for block in self._blocks:
            if block.startswith(b":"):
                self.comments += 1
                continue
            *head, data = block.decode().split("\n")
            assert data.startswith("data: ")
            assert all(line.startswith("id: ") for line in head)
            yield head[0].removeprefix("id: ") if head else None, data.removeprefix("data: ")

    def events(self) -> Turn:
        """The rest, parsed."""
        return Turn(json.loads(data) for _, data in self)


@contextmanager
def streamed(
    stack: Stack, url: str, *, after: int | str | None = None, last: int | str | None = None, **params: str
) -> Iterator[Stream]:
    headers = {"Accept": "text/event-stream"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    if after is not None:
        params["after"] = str(after)
    response = stack.http.get(url, params=params, headers=headers, stream=True, timeout=PATIENCE)
    with closing(response):
        yield Stream(response)


def refused(stack: Stack, url: str, **options: Any) -> requests.Response:
    with streamed(stack, url, **options) as stream:
        assert stream.response.content is not None
        return stream.response


def heard_raw(connection: Any) -> list[tuple[str, str]]:
    """What a WebSocket hears up to the end of a task: `(seq, text)`."""
    heard: list[tuple[str, str]] = []
    while not heard or not is_last(json.loads(heard[-1][1])):
        text = connection.recv(timeout=PATIENCE)
        event: Event = json.loads(text)
        if event["event"] != "ping":
            heard.append((str(event["seq"]), text))
    return heard


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=12&interval=0.002")


@pytest.fixture(scope="module")
def valkey(stack: Stack) -> Iterator[redis.Redis]:
    url = json.loads(services_file(stack.home).read_text())["urls"]["redis_url"]
    with closing(redis.Redis.from_url(url)) as client:
        yield client


def log_keys(session_id: str) -> list[str]:
    name = session_name("demo", session_id)
    return [f"nooble:{kind}:{{{name}}}" for kind in ("log", "marks", "answer")]


# --- The same words ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["fake?tokens=40&interval=0.004", "fake-401", "fake?tokens=0"])
def test_a_stream_and_a_socket_tell_the_same_bytes(stack: Stack, model: str) -> None:
    session_id, agent_id = new_session(), stack.agent(model)
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        with streamed(stack, asked["events_url"]) as stream:
            assert stream.response.status_code == 200
            headers = stream.response.headers
            assert headers["Content-Type"] == "text/event-stream"
            assert headers["Cache-Control"] == "no-cache"
            assert headers["X-Accel-Buffering"] == "no"
            told = list(stream)
        heard = heard_raw(socket.connection)
    assert told == heard
    Turn(json.loads(data) for _, data in told).check()


def test_a_turn_among_others_is_told_without_them(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        tasks = [stack.ask(agent_id, session_id=session_id) for _ in range(3)]
        heard = [event for _ in tasks for event in heard_raw(socket.connection)]
    for asked in tasks:
        with streamed(stack, asked["events_url"]) as stream:
            own = [(seq, text) for seq, text in heard if json.loads(text)["task_id"] == asked["task_id"]]
            assert list(stream) == own != []


def test_a_cancelled_run_ends_its_stream(stack: Stack) -> None:
    agent_id, session_id = stack.agent(new_model("fake-endless?interval=0.005")), new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        with streamed(stack, asked["events_url"]) as stream:
            events = iter(stream)
            told = [next(events) for _ in range(3)]
            assert stack.cancel(asked["task_id"]).status_code == 200
            told += list(events)
        assert told == heard_raw(socket.connection)
    turn = Turn(json.loads(data) for _, data in told)
    assert turn.check().order().endswith("CX")


def test_what_is_cancelled_before_it_runs_ends_its_stream(stack: Stack, agent_id: str) -> None:
    with stack.agents_paused():
        asked = stack.ask(agent_id)
        with streamed(stack, asked["events_url"]) as stream:
            assert stack.cancel(asked["task_id"]).status_code == 200
            assert stream.events().check().order() == "X"


def test_the_address_needs_nothing_but_the_tasks_id(stack: Stack, agent_id: str) -> None:
    asked = stack.ask(agent_id)
    assert asked["events_url"] == f"{stack.base_url}/api/v1/chat/stream/{asked['task_id']}"
    with streamed(stack, asked["events_url"], tenant_id="demo") as stream:
        assert stream.events().check().text == answer_text(12)


# --- From any point ---------------------------------------------------------------------------------


def test_a_stream_goes_on_after_every_event(stack: Stack, agent_id: str) -> None:
    """A late client gets all of it, and one that comes back gets the rest."""
    asked = stack.ask(agent_id, message="first", session_id=(session_id := new_session()))
    stack.finished(asked["task_id"])
    asked = stack.ask(agent_id, message="second", session_id=session_id)
    with streamed(stack, asked["events_url"]) as stream:
        told = list(stream)
    assert int(told[0][0] or 0) > 1
    for number, (seq, _) in enumerate(told[:-1], start=1):
        with streamed(stack, asked["events_url"], after=seq) as stream:
            assert list(stream) == told[number:]
        with streamed(stack, asked["events_url"], last=seq) as stream:
            assert list(stream) == told[number:]
        # As a browser does: its address stays, its header wins.
        with streamed(stack, asked["events_url"], after=told[0][0], last=seq) as stream:
            assert list(stream) == told[number:]
    for after in (None, 0, 1):
        with streamed(stack, asked["events_url"], after=after) as stream:
            assert list(stream) == told


def test_a_client_that_is_dropped_again_and_again_misses_nothing(stack: Stack) -> None:
    asked = stack.ask(stack.agent("fake?tokens=120&interval=0.01"))
    told: list[tuple[str | None, str]] = []
    for _ in range(15):
        with streamed(stack, asked["events_url"], last=told[-1][0] if told else None) as stream:
            for number, sent in enumerate(stream, start=1):
                told.append(sent)
                if number == 3:
                    break
    with streamed(stack, asked["events_url"], last=told[-1][0]) as stream:
        told += list(stream)
    turn = Turn(json.loads(data) for _, data in told)
    assert turn.check().text == answer_text(120)


def test_a_stream_that_has_ended_says_so(stack: Stack, agent_id: str) -> None:
    asked = stack.ask(agent_id)
    with streamed(stack, asked["events_url"]) as stream:
        *_, (last, _) = list(stream)
    for response in (
        refused(stack, asked["events_url"], after=last),
        refused(stack, asked["events_url"], last=last),
        refused(stack, asked["events_url"], after=0, last=last),
    ):
        assert (response.status_code, response.content) == (204, b"")


# --- What the log has lost --------------------------------------------------------------------------


def test_a_hole_under_a_running_answer_gives_what_it_is_so_far(stack: Stack, valkey: redis.Redis) -> None:
    session_id, agent_id = new_session(), stack.agent("fake-stall?tokens=6")  # it says half of it
    asked = stack.ask(agent_id, message="The question", session_id=session_id)
    with streamed(stack, asked["events_url"]) as stream:
        text = ""
        for _, data in stream:
            event = json.loads(data)
            if event["event"] == "agent_response_token":
                text += event["data"]["token"]
            if text == answer_text(3):
                break
    valkey.xtrim(log_keys(session_id)[0], maxlen=1, approximate=False)
    with streamed(stack, asked["events_url"]) as stream:
        events = iter(stream)
        seq, data = next(events)
        snapshot = json.loads(data)
        assert snapshot["event"] == "snapshot"
        [question] = snapshot["data"]["messages"]
        assert (question["role"], question["text"]) == ("user", "The question")
        running = {"task_id": asked["task_id"], "attempt": 1, "text": text}
        assert snapshot["data"]["running"] == running
        assert str(snapshot["data"]["last_seq"]) == seq
        assert stack.cancel(asked["task_id"]).status_code == 200
        following = Turn(json.loads(data) for _, data in events)
    assert following.order() in ("CX", "xCX")
    assert [event["seq"] for event in following] == list(range(int(seq) + 1, int(seq) + 1 + len(following)))
    assert following.data("agent_execution_completed")["text"] == text


@pytest.mark.parametrize("model", ["fake?tokens=5", "fake-401"])
def test_a_finished_task_whose_log_is_gone_is_told_from_the_database(
    stack: Stack, valkey: redis.Redis, model: str
) -> None:
    session_id = new_session()
    asked = stack.ask(stack.agent(model), message="The question", session_id=session_id)
    with streamed(stack, asked["events_url"]) as stream:
        told = list(stream)
    ends = [(event["event"], event["data"]) for event in (json.loads(data) for _, data in told[-2:])]
    assert valkey.delete(*log_keys(session_id))
    with streamed(stack, asked["events_url"], last=told[1][0]) as stream:
        (_, snapshot), *rebuilt = list(stream)
    data = json.loads(snapshot)["data"]
    stored = [(message["role"], message["text"]) for message in stack.messages(session_id)]
    assert [(message["role"], message["text"]) for message in data["messages"]] == stored
    assert data["running"] is None
    events = [json.loads(text) for _, text in rebuilt]
    assert [(event["event"], event["data"]) for event in events] == ends
    assert refused(stack, asked["events_url"], last=rebuilt[-1][0]).status_code == 204


# --- Refusals ---------------------------------------------------------------------------------------


def test_what_is_not_there_or_not_yours_is_not_found(stack: Stack, agent_id: str) -> None:
    asked = stack.ask(agent_id)
    unknown = f"{stack.base_url}/api/v1/chat/stream/{NOBODY}"
    status = stack.request("GET", f"/api/v1/chat/status/{NOBODY}").json()
    for response in (
        refused(stack, unknown),
        refused(stack, asked["events_url"], tenant_id="other"),
        refused(stack, asked["events_url"], tenant_id="nobody"),
        refused(stack, asked["events_url"], tenant_id="Not a tenant"),
        refused(stack, f"{stack.base_url}/api/v1/chat/stream/x"),
    ):
        assert response.status_code == 404
        body = response.json()
        assert body["success"] is False
        assert body["error"] == status["error"]
        assert body["request_id"]


@pytest.mark.parametrize("bad", ["", "x", "-1", "1.5", "+1", "1\u0663", "9" * 16])
def test_an_after_that_is_no_seq_is_refused(stack: Stack, agent_id: str, bad: str) -> None:
    asked = stack.ask(agent_id)
    response = refused(stack, asked["events_url"], after=bad)
    assert response.status_code == 422
    assert response.json()["error"]["type"] == "ValidationFailed"
    assert "after" in response.json()["error"]["details"]


def test_clients_that_leave_hold_nothing(stack: Stack) -> None:
    """More of them than the web has threads; then the platform answers as before."""
    asked = stack.ask(stack.agent("fake-stall?tokens=1"))
    wait_for(lambda: stack.status(asked["task_id"])["status"], equal_to="processing")
    for _ in range(3):
        opened = [stack.http.get(asked["events_url"], stream=True, timeout=PATIENCE) for _ in range(40)]
        for response in opened:
            assert json.loads(next(iter(Stream(response)))[1])["event"] == "agent_execution_started"
        assert stack.status(asked["task_id"])["status"] == "processing"
        for response in opened:
            response.close()
    assert stack.cancel(asked["task_id"]).status_code == 200
    with streamed(stack, asked["events_url"]) as stream:
        assert stream.events().check().order().endswith("CX")


def test_the_error_speaks_the_callers_language(stack: Stack) -> None:
    url = f"/api/v1/chat/stream/{uuid.uuid4()}"
    english, spanish = (stack.request("GET", url, language=language).json() for language in ("en", "es"))
    assert english["error"]["type"] == spanish["error"]["type"] == "TaskNotFound"
    assert english["error"]["message"] != spanish["error"]["message"]
