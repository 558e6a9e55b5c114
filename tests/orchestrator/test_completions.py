"""Completions without a network: what a client is told of its run, and what becomes of a run without one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from threading import Event
from typing import Any

import orjson
import pytest
from asgiref.testing import ApplicationCommunicator
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from agents.models import Agent
from core import aio
from core.api.asgi import ThreadedASGIHandler
from core.api.late import Answer, LateResponse
from core.events import log
from core.models import Task, Tenant
from execution.events import (
    AgentExecutionCompleted,
    AgentExecutionStarted,
    AgentResponseToken,
    ResponseToken,
    RunCompleted,
    RunStarted,
)
from orchestrator.completions import answers
from orchestrator.completions.answers import Said, Unsayable
from orchestrator.completions.errors import failed
from orchestrator.snapshots import in_thread
from tests.core.broker.server import eventually
from tests.factories import claim, make_agent, make_key

PATIENCE = 30  # seconds


# --- What was said cannot be taken back -------------------------------------------------------------


def token(text: str, offset: int) -> tuple[str, dict[str, Any]]:
    return "agent_response_token", {"token": text, "offset": offset, "is_final": False}


def started(attempt: int) -> tuple[str, dict[str, Any]]:
    return "agent_execution_started", {"attempt": attempt}


def completed(text: str, reason: str = "stop") -> tuple[str, dict[str, Any]]:
    return "agent_execution_completed", {"text": text, "finish_reason": reason}


def snapshot(text: str | None) -> tuple[str, dict[str, Any]]:
    return "snapshot", {"running": None if text is None else {"text": text}}


@pytest.mark.parametrize(
    ("events", "news"),
    [
        (
            [started(1), token("a", 0), token("bé", 1), token("c", 3), completed("abéc")],
            ["", "a", "bé", "c", ""],
        ),
        ([started(1), completed("whole")], ["", "whole"]),
        ([token("a", 0), token("b", 1), started(2), token("ab", 0), token("c", 2)], ["a", "b", "", "", "c"]),
        ([token("abc", 0), started(2), token("a", 0), token("bcd", 1)], ["abc", "", "", "d"]),
        ([token("ab", 0), token("abcd", 0)], ["ab", "cd"]),  # Valkey had lost its data
        ([token("ab", 0), snapshot("abc"), token("d", 3)], ["ab", "c", "d"]),
        ([token("ab", 0), snapshot(None), completed("abc")], ["ab", "", "c"]),
        ([token("ab", 0), started(2), completed("", "cancelled")], ["ab", "", ""]),
        ([token("ab", 0), ("task_status_update", {"status": "queued"})], ["ab", ""]),
    ],
    ids=["plain", "at once", "again", "behind", "whole", "gap", "lost", "cancelled", "other"],
)
def test_what_is_new(events: list[tuple[str, dict[str, Any]]], news: list[str]) -> None:
    said = Said()
    assert [said.hear(*event) for event in events] == news


@pytest.mark.parametrize(
    "events",
    [
        [token("ab", 0), started(2), token("x", 0)],
        [token("ab", 0), started(2), completed("a")],
        [token("ab", 0), snapshot("x")],
    ],
    ids=["other words", "fewer", "in a gap"],
)
def test_what_cannot_be_said(events: list[tuple[str, dict[str, Any]]]) -> None:
    *before, last = events
    said = Said()
    for event in before:
        said.hear(*event)
    with pytest.raises(Unsayable):
        said.hear(*last)


@pytest.mark.parametrize(
    ("error_type", "status", "code"),
    [
        ("ProviderUnavailable", 502, "server_error"),
        ("ProviderTimeout", 504, "server_error"),
        ("DeadlineExceeded", 504, "server_error"),
        ("Poison", 500, "server_error"),
        ("BudgetExhausted", 429, "insufficient_quota"),
    ],
)
def test_a_run_that_failed(error_type: str, status: int, code: str) -> None:
    answer = failed(error_type, "No.", "r-1")
    assert (answer.status, answer.headers) == (status, {"X-Should-Retry": "false"})
    error = {"type": error_type, "message": "No.", "details": {}, "param": None, "code": code}
    assert answer.body == {"success": False, "error": error, "request_id": "r-1"}


# --- One client of the real handler -----------------------------------------------------------------


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedASGIHandler]:
    made = ThreadedASGIHandler()
    yield made
    made._threads.shutdown()


class Client:
    """One POST of a completion; its run is played by the test."""

    def __init__(self, handler: ThreadedASGIHandler, agent: Agent, key: str, **fields: Any) -> None:
        self._handler = handler
        self._key = key
        self._agent = agent
        self._body = {"model": str(agent.pk), "messages": [{"role": "user", "content": "Hi"}], **fields}
        self.seen = b""
        self.status = 0

    async def ask(self) -> None:
        headers = {
            "host": "testserver",
            "authorization": f"Bearer {self._key}",
            "content-type": "application/json",
        }
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
        }
        self._wire = ApplicationCommunicator(self._handler, scope)
        await self._wire.send_input({"type": "http.request", "body": orjson.dumps(self._body)})

    async def leave(self) -> None:
        await self._wire.send_input({"type": "http.disconnect"})
        await self._wire.wait(PATIENCE)

    async def receive(self) -> bool:
        """One message of the answer; whether there are more."""
        message = await self._wire.receive_output(PATIENCE)
        self.status = message.get("status", self.status)
        self.seen += message.get("body", b"")
        return message["type"] == "http.response.start" or bool(message.get("more_body"))

    async def whole(self) -> bytes:
        while await self.receive():
            pass
        await self._wire.wait(PATIENCE)
        return self.seen

    async def until(self, text: bytes) -> None:
        while text not in self.seen:
            assert await self.receive(), self.seen

    async def run(self) -> Task:
        return await in_thread(self._run)

    def _run(self) -> Task:
        runs = Task.unscoped.filter(agent_id=self._agent.pk, action="agent.execute")
        eventually(runs.exists)
        task: Task = runs.get()
        return task


@pytest.fixture
def agent(committed_tenant: Tenant) -> Agent:
    return make_agent(committed_tenant)


@pytest.fixture
def key(committed_tenant: Tenant) -> str:
    return make_key(committed_tenant)[1]


def play(scenario: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    aio.run(bounded())


class Played:
    """What the run's worker tells."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._envelope = {
            "task_id": task.pk,
            "global_task_id": task.pk,
            "tenant_id": task.tenant_id,
            "session_id": "",
        }

    async def start(self, attempt: int = 1) -> None:
        data = RunStarted(agent_id=uuid.uuid4(), version=1, attempt=attempt)
        await log.append(AgentExecutionStarted(**self._envelope, data=data), attempt, floor=0)

    async def say(self, text: str, offset: int, attempt: int = 1) -> None:
        data = ResponseToken(token=text, offset=offset, is_final=False)
        await log.append(AgentResponseToken(**self._envelope, data=data), attempt, floor=0)

    async def complete(self, text: str, attempt: int = 1) -> None:
        usage = {"prompt_tokens": 2, "completion_tokens": 3, "cached_tokens": 1, "accuracy": "exact"}
        data = RunCompleted(text=text, usage=usage, tool_calls=[], citations=[], finish_reason="stop")
        await log.append(AgentExecutionCompleted(**self._envelope, data=data), attempt, floor=0)


def status_of(task: Task) -> str:
    task.refresh_from_db()
    return str(task.status)


async def becomes(task: Task, status: str) -> None:
    await in_thread(eventually, lambda: status_of(task) == status)


def test_an_attempt_that_says_the_same_is_not_noticed(
    handler: ThreadedASGIHandler, agent: Agent, key: str
) -> None:
    async def scenario() -> None:
        client = Client(handler, agent, key, stream=True)
        await client.ask()
        worker = Played(await client.run())
        await worker.start()
        await worker.say("one ", 0)
        await client.until(b"one ")
        await worker.start(2)
        await worker.say("one ", 0, 2)
        await worker.say("two", 4, 2)
        await worker.complete("one two", 2)
        text = (await client.whole()).decode()
        assert text.count("one ") == 1
        assert text.endswith('"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')

    play(scenario)


def test_an_attempt_that_says_something_else_ends_the_stream_and_the_run(
    handler: ThreadedASGIHandler, agent: Agent, key: str
) -> None:
    async def scenario() -> None:
        client = Client(handler, agent, key, stream=True)
        await client.ask()
        task = await client.run()
        worker = Played(task)
        await worker.start()
        await worker.say("one ", 0)
        await client.until(b"one ")
        await worker.start(2)
        await worker.say("two", 0, 2)
        *_, last, end = (await client.whole()).split(b"\n\n")
        assert orjson.loads(last.removeprefix(b"data: "))["error"]["type"] == "AnswerRestarted"
        assert end == b""
        await becomes(task, "cancelled")

    play(scenario)


def test_usage_is_told_as_it_is(handler: ThreadedASGIHandler, agent: Agent, key: str) -> None:
    async def scenario() -> None:
        client = Client(handler, agent, key)
        await client.ask()
        worker = Played(await client.run())
        await worker.start()
        await worker.complete("Yes.")
        body = orjson.loads(await client.whole())
        assert client.status == 200
        assert body["usage"] == {
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
            "accuracy": "exact",
        }

    play(scenario)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("is_claimed", [False, True], ids=["waiting", "running"])
def test_a_client_that_leaves_takes_its_run_along(
    handler: ThreadedASGIHandler, agent: Agent, key: str, stream: bool, is_claimed: bool
) -> None:
    async def scenario() -> None:
        client = Client(handler, agent, key, stream=stream)
        await client.ask()
        task = await client.run()
        if is_claimed:
            await in_thread(claim, task)
        await client.leave()
        await becomes(task, "cancelling" if is_claimed else "cancelled")
        assert task.cancelled_by == "client"

    play(scenario)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_leaves_while_its_run_is_made_takes_it_along(
    handler: ThreadedASGIHandler, agent: Agent, key: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of a view cannot be stopped: what it makes is given up when it comes."""
    at_work, go_on = Event(), Event()
    really = handler.get_response

    def slow(request: HttpRequest) -> HttpResponseBase:
        response = really(request)
        at_work.set()
        assert go_on.wait(PATIENCE)
        return response

    monkeypatch.setattr(handler, "get_response", slow)

    async def scenario() -> None:
        client = Client(handler, agent, key, stream=stream)
        await client.ask()
        assert await asyncio.to_thread(at_work.wait, PATIENCE)
        await client.leave()
        go_on.set()
        task = await client.run()
        await becomes(task, "cancelled")

    play(scenario)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_has_its_answer_cancels_nothing(
    handler: ThreadedASGIHandler, agent: Agent, key: str, stream: bool
) -> None:
    async def scenario() -> None:
        client = Client(handler, agent, key, stream=stream)
        await client.ask()
        task = await client.run()
        claimed = await in_thread(claim, task)
        worker = Played(task)
        await worker.start()
        await worker.complete("Yes.")
        assert b"Yes." in await client.whole()
        answers._threads.submit(lambda: None).result(PATIENCE)  # who would cancel it has nothing to do
        assert await in_thread(status_of, claimed) == "processing"

    play(scenario)


# --- Late answers -----------------------------------------------------------------------------------


async def test_a_late_answer_has_its_own_status_and_length() -> None:
    async def work() -> Answer:
        return Answer(504, {"late": True}, {"X-Told": "yes"})

    response = LateResponse(work)
    response["Content-Length"] = "0"  # as a middleware has it, to which it is empty
    await response.arrive()
    assert (response.status_code, response.content) == (504, b'{"late":true}')
    assert (response["Content-Length"], response["X-Told"]) == ("13", "yes")
