"""Sockets that are silent, slow, too many, or in the way of a restart; logs that are lost under them."""

from __future__ import annotations

import json
import random
import re
import select
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from websockets.exceptions import ConnectionClosed

from bench.processes import Process
from core.events import log
from core.events.groups import session_name
from nooble.embedded import services_file
from orchestrator.events import Broadcast
from tests.acceptance.raw import BINARY, CLOSE, PING, PONG, TEXT, RawSocket, frame, raw_connection, raw_socket
from tests.acceptance.stack import PATIENCE, Stack, clean_environment, new_session, wait_for

SEED = 20261120
START_SECONDS = 60.0


@contextmanager
def web(stack: Stack, folder: Path, **variables: str) -> Iterator[tuple[Stack, Process]]:
    """Another web process of the platform, in an environment of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = clean_environment() | {"NOOBLE_HOME": str(stack.home), **variables}
    command = (sys.executable, "-m", "daphne", "-v", "0", "-p", str(port), "nooble.asgi:application")
    process = Process(command, environment, folder / "web.log")
    try:
        here = replace(stack, base_url=f"http://127.0.0.1:{port}")
        wait_for(lambda: answers(here))
        yield here, process
        printed = (folder / "web.log").read_text()
        assert "Traceback" not in printed, printed[-4_000:]
    finally:
        process.stop()


def answers(stack: Stack) -> bool:
    try:
        return stack.request("GET", "/health").ok
    except requests.ConnectionError:
        return False


def connections(stack: Stack) -> int:
    return int(stack.request("GET", "/ws/stats").json()["connections"])


@pytest.fixture(scope="module")
def valkey(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(
        json.loads(services_file(stack.home).read_text())["urls"]["redis_url"]
    ) as client:
        yield client


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=8&interval=0.002")


# --- Signs of life ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A web process that soon gives up those who say nothing."""
    variables = {"ORCHESTRATOR_WEBSOCKET_PING_INTERVAL": "0.5", "ORCHESTRATOR_WEBSOCKET_PING_TIMEOUT": "1"}
    with web(stack, tmp_path_factory.mktemp("strict"), **variables) as (here, _):
        yield here


def test_who_answers_no_ping_is_closed_and_dropped(strict: Stack) -> None:
    with raw_socket(strict.socket_url(new_session())) as client:
        heard, code = [], None
        for found in client.frames():
            if found.opcode == CLOSE:
                code = found.code
                break
            heard.append(found)
        assert code == 4408
        events = [one.event for one in heard if one.opcode == TEXT]
        assert events[0]["event"] == "connection_established"
        assert {event["event"] for event in events[1:-1]} == {"ping"}
        assert (events[-1]["event"], events[-1]["data"]["type"]) == ("error", "NoSignOfLife")
        assert PING in {one.opcode for one in heard}
        # It does not answer the close either.
        assert client.is_dropped()


@pytest.mark.parametrize("sign", [frame(PONG), frame(TEXT, b'{"action": "ping"}'), frame(PING)])
def test_any_sign_of_life_counts(strict: Stack, sign: bytes) -> None:
    with raw_socket(strict.socket_url(new_session())) as client:
        pings = 0
        for found in client.frames():
            assert found.opcode != CLOSE
            if found.opcode == PING:
                client.send(sign)
                pings += 1
                if pings == 8:
                    break


# --- Readers ------------------------------------------------------------------------------------------


def test_who_does_not_read_is_closed_and_comes_back_without_a_gap(stack: Stack) -> None:
    """More is offered than the kernel buffers for a client; another reader hears all of it."""
    session_id = new_session()
    with stack.socket(session_id) as reader, raw_socket(stack.socket_url(session_id)) as sleeper:
        hello = next(sleeper.frames()).event["data"]
        stack.shell(NOTES.format(session_id=session_id, task_id=None, count=200, size=50_000))
        assert [event["seq"] for event in reader.take(200)] == list(range(1, 201))
        # The sleeper is counted no more.
        wait_for(lambda: connections(stack), equal_to=1)
        heard, code = sleeper.until_closed()
        assert code == 4409
        events = [one.event for one in heard if one.opcode == TEXT]
        assert events[-1]["event"] == "error"
        assert events[-1]["data"]["type"] == "SlowReader"
        seqs = [event["seq"] for event in events if event["event"] == "note"]
        assert 0 < len(seqs) < 200
        assert seqs == list(range(1, len(seqs) + 1))
        assert reader.lives()
        with stack.socket(session_id, token=hello["resume_token"], after=len(seqs)) as again:
            rest = again.take(200 - len(seqs))
            assert [event["seq"] for event in rest] == list(range(len(seqs) + 1, 201))
            assert again.lives()


NOTES = """
from core import aio
from core.events import log
from orchestrator.events import Broadcast

async def say():
    for number in range({count}):
        event = Broadcast(
            event="note", task_id={task_id!r}, global_task_id=None, tenant_id="demo",
            session_id={session_id!r}, data={{"text": "x" * {size}}},
        )
        await log.append(event, floor=0)

aio.run(say())
"""


@pytest.fixture
def endless(stack: Stack) -> Iterator[dict[str, Any]]:
    """A run that goes on until the test ends."""
    asked = stack.ask(stack.agent("fake-endless?interval=0.5"))
    yield asked
    stack.cancel(asked["task_id"])
    stack.finished(asked["task_id"])


def test_a_stream_that_is_not_read_is_cut_and_goes_on_without_a_gap(
    stack: Stack, endless: dict[str, Any]
) -> None:
    task_id = endless["task_id"]
    path = f"/api/v1/chat/stream/{task_id}"
    with raw_connection(stack.base_url) as sleeper:
        sleeper.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert sleeper.recv(12) == b"HTTP/1.1 200"
        stack.shell(NOTES.format(**endless | {"count": 200, "size": 50_000}))
        poll = select.poll()
        poll.register(sleeper, select.POLLRDHUP)
        assert poll.poll(PATIENCE * 1_000)
        heard = b""
        with suppress(ConnectionError):
            while data := sleeper.recv(65_536):
                heard += data
    # Each event is written at once, so its id and its data are in one chunk.
    whole = [int(found) for found in re.findall(rb"id: (\d+)\ndata: [^\r]*\n\n\r\n", heard)]
    assert whole == list(range(whole[0], whole[0] + len(whole)))
    headers = {"Last-Event-ID": str(whole[-1])}
    with stack.request("GET", path, headers=headers, stream=True) as stream:
        seqs, notes = [], 0
        for line in stream.iter_lines(chunk_size=65_536):
            if line.startswith(b"id: "):
                seqs.append(int(line[4:]))
            notes += b'"note"' in line[:300]
            if notes + heard.count(b'"event":"note"', 0, heard.rindex(b"id: ")) >= 200:
                break
    assert seqs == list(range(whole[-1] + 1, whole[-1] + 1 + len(seqs)))


# --- What comes in ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, burst", [('{"action": "ping"}', 1_280), ("x" * 65_536, 20)], ids=["small", "large"]
)
def test_frames_beyond_a_burst_end_the_socket(stack: Stack, text: str, burst: int) -> None:
    with stack.socket(new_session()) as bystander, raw_socket(stack.socket_url(new_session())) as client:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(blast, client, frame(TEXT, text.encode()) * (10 * burst))
            heard, code = client.until_closed()
        assert code == 4429
        events = [one.event for one in heard if one.opcode == TEXT]
        assert (events[-1]["event"], events[-1]["data"]["type"]) == ("error", "RateLimited")
        answered = [event for event in events[1:-1] if event["event"] != "ping"]
        assert len(answered) <= 5 * burst  # the burst, and what time brought
        assert bystander.lives()


def blast(client: RawSocket, data: bytes) -> None:
    try:
        client.send(data)
    except OSError:
        pass  # it was closed


def test_a_flood_of_pings_and_fragments_is_nobody_elses(stack: Stack) -> None:
    with stack.socket(new_session()) as bystander:
        with raw_socket(stack.socket_url(new_session())) as client:
            blast(client, frame(PING, b"x" * 125) * 20_000)
            assert bystander.lives()
        with raw_socket(stack.socket_url(new_session())) as client:
            blast(client, frame(TEXT, first=0) + frame(0, first=0) * 20_000)
            assert client.until_closed()[1] == 1009
        assert bystander.lives()


def test_frames_that_no_library_would_send(stack: Stack) -> None:
    """Each ends its own socket with a code that says why, or does nothing."""
    chance = random.Random(SEED)
    broken = [
        frame(TEXT, b"\xff\xfe"),
        frame(TEXT, b"{}", first=0xC0),
        frame(TEXT, b"{}", first=0xF0),
        frame(TEXT, b"{}", masked=False),
        frame(3, b"reserved"),
        frame(7),
        frame(11),
        frame(15, b"x" * 200),
        frame(0, b"nothing to go on with"),
        frame(TEXT, b"{", first=0) + frame(TEXT, b"}"),
        frame(PING, b"x", first=0),
        frame(PING, b"x" * 126),
        frame(CLOSE, b"x"),
        frame(CLOSE, b"\x00\x01"),
        frame(CLOSE, b"\x03\xe8\xff"),
        frame(BINARY, b"\x00" * 100),
        frame(TEXT, b"[" * 5_000),
        frame(TEXT, b""),
        frame(TEXT)[:1] + b"\xff" + b"\xff" * 8,
        chance.randbytes(500),
    ]
    with stack.socket(new_session()) as bystander:
        for number in range(100):
            with raw_socket(stack.socket_url(new_session())) as client:
                first = broken[number % len(broken)]
                blast(client, first + b"".join(chance.choices(broken, k=3)))
                blast(client, frame(CLOSE, b"\x03\xe8"))
                _, code = client.until_closed()
                assert code in (None, 1000, 1002, 1003, 1007, 1009, 4400), f"seed {SEED}, number {number}"
        assert bystander.lives()


# --- How many -----------------------------------------------------------------------------------------


def test_no_more_sockets_than_there_may_be_over_all_web_processes(stack: Stack, tmp_path: Path) -> None:
    wait_for(lambda: connections(stack), equal_to=0)
    processes = stack.request("GET", "/ws/stats").json()["processes"]
    with web(stack, tmp_path, ORCHESTRATOR_MAX_WEBSOCKET_CONNECTIONS="3") as (small, process):
        with stack.socket(new_session()), stack.socket(new_session()):
            # The others hear of it when it is told.
            wait_for(lambda: connections(small), equal_to=2)
            with small.socket(new_session()) as last:
                code, error = small.refusal(new_session())
                assert (code, error["event"]) == (4429, "error")
                assert error["data"]["type"] == "TooManyConnections"
                assert last.lives()
            with small.socket(new_session()) as last:
                assert last.lives()
        process.stop()
    # It takes its count with it.
    wait_for(lambda: stack.request("GET", "/ws/stats").json()["processes"], equal_to=processes)


# --- Going away ---------------------------------------------------------------------------------------


def test_a_web_process_that_stops_sends_its_clients_elsewhere(
    stack: Stack, tmp_path: Path, endless: dict[str, Any]
) -> None:
    """In the middle of their answers; none of them misses a word."""
    with web(stack, tmp_path) as (here, process), ExitStack() as cleanup:
        sessions = [new_session() for _ in range(10)]
        streaming = stack.agent("fake?tokens=200&interval=0.01")
        sockets = [cleanup.enter_context(here.socket(session)) for session in sessions]
        for one, session in zip(sockets, sessions, strict=True):
            stack.ask(streaming, session_id=session)
            one.until("agent_response_token")
        cleanup.enter_context(raw_socket(here.socket_url(new_session())))  # answers nothing
        path = f"/api/v1/chat/stream/{endless['task_id']}"
        stream = cleanup.enter_context(here.request("GET", path, stream=True)).iter_lines()
        assert any(b"agent_execution_started" in line for line in stream)
        process.stop()
        for _ in stream:
            pass  # up to its end, which is one, not a cut
        for one, session in zip(sockets, sessions, strict=True):
            heard = []
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    heard.append(one.receive())
            assert heard.pop() == {"event": "reconnect"}
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
            after = heard[-1]["seq"] if heard else 2
            with stack.socket(session, token=one.token, after=after) as again:
                assert again.turn()[0]["seq"] == after + 1
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(here.base_url.rpartition(":")[2])), timeout=PATIENCE)


# --- Logs that are lost -------------------------------------------------------------------------------


def test_a_log_that_is_lost_under_an_open_socket(stack: Stack, valkey: redis.Redis, agent_id: str) -> None:
    session_id = new_session()
    name = session_name("demo", session_id)
    with stack.socket(session_id) as client:
        asked = stack.ask(agent_id, session_id=session_id)
        first = client.turn().check()
        valkey.delete(log._log(name), log._marks(name))
        stack.ask(agent_id, "Once more", session_id=session_id)
        stands = client.until("snapshot")[-1]["data"]
        assert stands["last_seq"] > len(first)
        assert "Hello" in [message["text"] for message in stands["messages"]]
        turn = client.until("task_completed", "snapshot")
        last = turn[-1]
        assert last["event"] == "task_completed"
        assert client.lives()
    with stack.socket(session_id, token=asked["resume_token"], after=len(first)) as late:
        stands = late.receive()
        assert (stands["event"], stands["data"]["last_seq"]) == ("snapshot", last["seq"])
        texts = [message["text"] for message in stands["data"]["messages"]]
        assert texts == [message["text"] for message in stack.messages(session_id)]
        assert late.lives()


def test_a_message_without_a_hint_is_heard(stack: Stack, valkey: redis.Redis) -> None:
    session_id = new_session()
    name = session_name("demo", session_id)
    with stack.socket(session_id) as client:
        seq = valkey.hincrby(log._marks(name), "seq", 1)
        note = Broadcast(
            event="note", task_id=None, global_task_id=None, tenant_id="demo", session_id=session_id, data={}
        )
        entry: dict[Any, Any] = {"e": note.body()}
        valkey.xadd(log._log(name), entry, id=f"{seq}-0")
        assert client.receive()["event_id"] == str(note.event_id)
