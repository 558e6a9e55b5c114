"""A task's events as Server-Sent Events; the real log, layer and database, without a server."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from asgiref.testing import ApplicationCommunicator
from channels.layers import get_channel_layer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.db import OperationalError
from django.db.models.functions import Now

from core import aio, valkey
from core.api.asgi import ThreadedASGIHandler
from core.events import log
from core.events.base import Event, with_seq
from core.events.groups import session_name
from core.events.log import Growth
from core.models import Task, Tenant
from execution.actions import ExecuteAgentAction
from execution.events import AgentExecutionStarted, AgentResponseToken, ResponseToken, RunStarted
from orchestrator import following
from orchestrator.events import Broadcast, ending_of
from orchestrator.snapshots import in_thread
from tests.factories import make_agent, make_message, make_session, make_task, make_tenant

PATIENCE = 30  # seconds
RESULT = {
    "text": "a b c ",
    "usage": {"prompt_tokens": 1, "completion_tokens": 3},
    "tool_calls": [],
    "citations": [],
    "finish_reason": "stop",
}


@pytest.fixture(scope="module")
def handler() -> ThreadedASGIHandler:
    return ThreadedASGIHandler()


@dataclass(frozen=True)
class Sent:
    """One event of a stream as it came over the wire."""

    id: int | None
    data: str

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.data)
        return event


class Stream:
    """One open stream."""

    def __init__(self, handler: ThreadedASGIHandler) -> None:
        self._handler = handler
        self._unread = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.comments = 0

    @asynccontextmanager
    async def opened(
        self, path: str, headers: dict[str, str] | None = None, method: str = "GET"
    ) -> AsyncIterator[Stream]:
        target, _, query = path.partition("?")
        sent = {"host": "testserver", "accept": "text/event-stream", **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": target,
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
        }
        self._wire = ApplicationCommunicator(self._handler, scope)
        await self._wire.send_input({"type": "http.request", "body": b""})
        start = await self._wire.receive_output(PATIENCE)
        self.status = start["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        try:
            yield self
        finally:
            await self.leave()

    async def leave(self) -> None:
        """The client goes away, and nothing may remain of it."""
        await self._wire.send_input({"type": "http.disconnect"})
        await self._wire.wait(PATIENCE)

    async def body(self) -> bytes:
        """Everything up to the end."""
        while await self._more():
            pass
        return self._unread

    async def _more(self) -> bool:
        message = await self._wire.receive_output(PATIENCE)
        self._unread += message.get("body", b"")
        return bool(message.get("more_body"))

    async def next(self) -> Sent | None:
        """The next event; None at the end of the stream."""
        while True:
            while b"\n\n" not in self._unread:
                if not await self._more():
                    assert self._unread == b""
                    return None
            block, _, self._unread = self._unread.partition(b"\n\n")
            if block == b":":
                self.comments += 1
                continue
            *head, data = block.decode().split("\n")
            assert data.startswith("data: ")
            assert len(head) <= 1
            number = int(head[0].removeprefix("id: ")) if head else None
            return Sent(number, data.removeprefix("data: "))

    async def take(self, number: int) -> list[Sent]:
        sent = [await self.next() for _ in range(number)]
        return [one for one in sent if one is not None]

    async def rest(self) -> list[Sent]:
        sent = []
        while (one := await self.next()) is not None:
            sent.append(one)
        return sent


class Run:
    """A task, and what its worker tells; `told` is what a WebSocket has heard of it."""

    def __init__(self, task: Task, handler: ThreadedASGIHandler) -> None:
        self.task = task
        self.handler = handler
        self.name = session_name(task.tenant_id, task.session_id)
        self.path = f"/api/v1/chat/stream/{task.pk}"
        self.told: list[Sent] = []
        self._text = ""
        self._last = 0

    def opened(self, query: str = "", headers: dict[str, str] | None = None) -> Any:
        return Stream(self.handler).opened(self.path + query, headers)

    def envelope(self) -> dict[str, Any]:
        return {
            "task_id": self.task.pk,
            "global_task_id": self.task.pk,
            "tenant_id": self.task.tenant_id,
            "session_id": self.task.session_id,
        }

    async def append(self, event: Event, growth: Growth | None = None) -> None:
        attempt = 1 if growth else None
        seq = await log.append(event, attempt, floor=self._last, growth=growth)
        assert seq is not None
        self._last = seq
        if event.task_id == self.task.pk:
            self.told.append(Sent(seq, with_seq(event.body(), seq)))

    async def start(self) -> None:
        data = RunStarted(agent_id=uuid.uuid4(), version=1, attempt=1)
        event = AgentExecutionStarted(**self.envelope(), data=data)
        await self.append(event, Growth(0, b"", lambda: (event, b"")))

    async def say(self, token: str) -> None:
        before, self._text = self._text, self._text + token
        data = ResponseToken(token=token, offset=len(before), is_final=False)
        event = AgentResponseToken(**self.envelope(), data=data)
        growth = Growth(len(before.encode()), token.encode(), lambda: (event, self._text.encode()))
        await self.append(event, growth)

    async def note(self) -> None:
        """Something happens in the session that is not the task's."""
        data = {"task_id": str(self.task.pk)}
        event = Broadcast(**{**self.envelope(), "task_id": None}, event="note", data=data)
        await self.append(event)

    async def settle(self, status: str = "completed") -> None:
        """In the database only."""
        await in_thread(self._settle, status)

    def _settle(self, status: str) -> None:
        task = self.task
        if status == "cancelled":
            assert Task.ask_to_cancel(task.pk, "ana")
        text = str(RESULT["text"])
        make_message(task_session(task), "assistant", text, task, seq=self._last)
        error = {"type": "InternalError", "message": "No.", "details": {}} if status == "failed" else None
        ending = "failed" if error else "completed"
        assert task.settle(ending, result=None if error else RESULT, error=error) == status
        task.refresh_from_db()

    async def tell_end(self) -> None:
        for event in ending_of(self.task):
            await self.append(event)

    async def play(self, status: str = "completed") -> None:
        """The whole turn, with a stranger's events in between."""
        await self.start()
        for token in ("a ", "b ", "c "):
            await self.say(token)
            await self.note()
        await self.settle(status)
        await self.tell_end()

    async def lose_log(self) -> None:
        keys = [log._log(self.name), log._marks(self.name), log._answer(self.name)]
        await valkey.async_client().delete(*keys)


def task_session(task: Task) -> Any:
    return task.messages.first().session


@pytest.fixture
def run(committed_tenant: Tenant, handler: ThreadedASGIHandler) -> Run:
    session = make_session(make_agent(committed_tenant))
    task = make_task(
        committed_tenant,
        action=ExecuteAgentAction.verb,
        session_id=session.key,
        status="processing",
        attempt=1,
        started_at=Now(),
    )
    make_message(session, "user", "question", task)
    log.begin(session_name(committed_tenant.pk, session.key))
    return Run(task, handler)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """On the loop that the channel layer and the log live on."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    aio.run(bounded())


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens every few seconds happens at once."""
    monkeypatch.setattr(following, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(following, "GRACE_SECONDS", 0)


async def layer_state() -> tuple[set[str], set[str]]:
    layer = get_channel_layer()._get_layer()
    return set(layer.channels), set(layer.groups)


# --- From first to last -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_a_stream_tells_what_a_socket_hears_and_ends(run: Run, status: str) -> None:
    async def scenario() -> None:
        async with run.opened() as sse:
            assert sse.status == 200
            assert sse.headers["content-type"] == "text/event-stream"
            assert sse.headers["cache-control"] == "no-cache"
            assert sse.headers["x-accel-buffering"] == "no"
            assert "content-length" not in sse.headers
            await run.play(status)
            assert await sse.rest() == run.told
            assert sse.comments == 1
        assert len(run.told) == 6

    play(scenario)


def test_a_late_client_gets_everything_from_the_log(run: Run) -> None:
    async def scenario() -> None:
        await run.note()
        await run.play()
        for query in ("", "?after=0", f"?tenant_id={run.task.tenant_id}"):
            async with run.opened(query) as sse:
                assert await sse.rest() == run.told

    play(scenario)


def test_each_token_comes_at_once(run: Run) -> None:
    async def scenario() -> None:
        async with run.opened() as sse:
            await run.start()
            await sse.take(1)
            for token in ("a ", "b "):
                await run.say(token)
                [sent] = await sse.take(1)
                assert sent.event["data"]["token"] == token

    play(scenario)


def test_a_stream_of_many_events_is_read_in_pages(run: Run) -> None:
    async def scenario() -> None:
        await run.start()
        for _ in range(1_200):
            await run.say("x")
        async with run.opened() as sse:
            assert await sse.take(1_201) == run.told

    play(scenario)


def test_what_came_before_the_question_is_not_looked_at(run: Run) -> None:
    """A log that was trimmed before the task began has no hole for its stream."""

    async def scenario() -> None:
        for _ in range(5):
            await run.note()
        await in_thread(run.task.messages.update, seq=5)
        await valkey.async_client().xtrim(log._log(run.name), maxlen=1, approximate=False)
        await run.play()
        async with run.opened() as sse:
            assert await sse.rest() == run.told

    play(scenario)


# --- Resuming ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["after", "header", "both"])
def test_a_stream_goes_on_after_any_event(run: Run, way: str) -> None:
    async def scenario() -> None:
        await run.play()
        for number, sent in enumerate(run.told[:-1], start=1):
            query = {"after": f"?after={sent.id}", "header": "", "both": "?after=0"}[way]
            headers = {} if way == "after" else {"Last-Event-ID": str(sent.id)}
            async with run.opened(query, headers) as sse:
                assert await sse.rest() == run.told[number:]

    play(scenario)


def test_a_stream_that_has_ended_says_so(run: Run) -> None:
    async def scenario() -> None:
        await run.play()
        last = run.told[-1].id
        await run.note()
        for query, headers in (
            (f"?after={last}", {}),
            (f"?after={last + 1}", {}),
            ("", {"Last-Event-ID": str(last)}),
            (f"?after={following.END}", {}),
        ):
            async with run.opened(query, headers) as sse:
                assert sse.status == 204
                assert await sse.body() == b""

    play(scenario)


def test_a_settled_task_whose_end_is_on_its_way_has_not_ended(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "GRACE_SECONDS", 3_600)

    async def scenario() -> None:
        await run.start()
        await run.settle()
        async with run.opened("?after=1") as sse:
            assert sse.status == 200
            await run.tell_end()
            assert await sse.rest() == run.told[1:]

    play(scenario)


# --- Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["x", "-1", "1.5", "1e3", "٣", "1" * 16])
@pytest.mark.parametrize("way", ["after", "header"])
def test_an_after_that_is_no_seq_is_refused(run: Run, bad: str, way: str) -> None:
    async def scenario() -> None:
        query = f"?after={bad}" if way == "after" else "?after=0"
        async with run.opened(query, {"Last-Event-ID": bad} if way == "header" else {}) as sse:
            assert sse.status == 422
            body = json.loads(await sse.body())
        assert body["success"] is False
        assert body["error"]["type"] == "ValidationFailed"
        assert body["error"]["details"].keys() == {"after" if way == "after" else "Last-Event-ID"}
        assert body["request_id"] == sse.headers["x-request-id"]

    play(scenario)


@pytest.mark.parametrize("which", ["unknown", "no id", "foreign tenant", "not a tenant", "no run"])
def test_what_is_not_there_is_not_found(run: Run, which: str) -> None:
    async def scenario() -> None:
        path = run.path
        if which == "unknown":
            path = f"/api/v1/chat/stream/{uuid.uuid4()}"
        elif which == "no id":
            path = "/api/v1/chat/stream/nothing"
        elif which == "foreign tenant":
            path += f"?tenant_id={(await in_thread(make_tenant)).pk}"
        elif which == "not a tenant":
            path += "?tenant_id=!"
        else:
            other = await in_thread(make_task, run.task.tenant)
            path = f"/api/v1/chat/stream/{other.pk}"
        async with Stream(run.handler).opened(path) as sse:
            assert sse.status == 404
            assert sse.headers["content-type"] == "application/json"
            body = json.loads(await sse.body())
            assert body["error"]["type"] == "TaskNotFound"
            assert body["request_id"]

    play(scenario)


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_a_stream_can_only_be_read(run: Run, method: str) -> None:
    async def scenario() -> None:
        async with Stream(run.handler).opened(run.path, method=method) as sse:
            assert sse.status == 405

    play(scenario)


# --- What the log has lost --------------------------------------------------------------------------


def test_a_hole_is_told_by_a_snapshot_and_the_stream_goes_on(run: Run, hasty: None) -> None:
    async def scenario() -> None:
        async with run.opened() as sse:
            await run.start()
            await run.say("a ")
            assert await sse.take(2) == run.told
            await run.lose_log()
            snapshot = await sse.next()
            assert snapshot is not None
            assert snapshot.event["event"] == "snapshot"
            assert snapshot.event["data"]["last_seq"] == snapshot.id
            assert [message["text"] for message in snapshot.event["data"]["messages"]] == ["question"]
            # Nobody has the text until the worker goes on.
            assert snapshot.event["data"]["running"] is None
            await run.say("b ")
            following = await sse.take(1)
            if following[0].event["event"] == "snapshot":
                assert following[0].event["data"]["running"]["text"] == "a b "
            else:
                assert following == run.told[-1:]

    play(scenario)


def test_a_trimmed_log_gives_the_answer_so_far(run: Run) -> None:
    async def scenario() -> None:
        await run.start()
        for token in ("a ", "b "):
            await run.say(token)
        await valkey.async_client().xtrim(log._log(run.name), maxlen=1, approximate=False)
        for query in ("", "?after=1"):
            async with run.opened(query) as sse:
                [snapshot] = await sse.take(1)
                assert snapshot.id == 3
                data = snapshot.event["data"]
                assert data["running"] == {"task_id": str(run.task.pk), "attempt": 1, "text": "a b "}
        async with run.opened("?after=2") as sse:
            assert await sse.take(1) == run.told[2:]

    play(scenario)


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_an_end_that_the_log_has_lost_is_told_from_the_row(run: Run, hasty: None, status: str) -> None:
    async def scenario() -> None:
        await run.play(status)
        expected = [(told.event["event"], told.event["data"]) for told in run.told[-2:]]
        await run.lose_log()
        for query in ("?after=3", f"?after={run.told[-1].id}"):
            async with run.opened(query) as sse:
                snapshot, completed, last = await sse.rest()
            assert snapshot.event["event"] == "snapshot"
            texts = [message["text"] for message in snapshot.event["data"]["messages"]]
            assert texts == ["question", RESULT["text"]]
            assert snapshot.event["data"]["running"] is None
            assert [(one.event["event"], one.event["data"]) for one in (completed, last)] == expected
            assert (completed.id, last.id) == (None, following.END)
            assert completed.event["seq"] is last.event["seq"] is None
            async with run.opened(headers={"Last-Event-ID": str(last.id)}) as sse:
                assert sse.status == 204

    play(scenario)


def test_an_end_in_a_hole_is_told_from_the_row(run: Run) -> None:
    """The log lives and has forgotten the task's end, but not that there was one."""

    async def scenario() -> None:
        await run.play()
        await run.note()
        await valkey.async_client().xtrim(log._log(run.name), maxlen=1, approximate=False)
        async with run.opened() as sse:
            names = [sent.event["event"] for sent in await sse.rest()]
        assert names == ["snapshot", "agent_execution_completed", "task_completed"]

    play(scenario)


def test_an_end_that_nobody_tells_is_told_from_the_row(run: Run, hasty: None) -> None:
    async def scenario() -> None:
        await run.start()
        await run.settle()
        async with run.opened() as sse:
            names = [sent.event["event"] for sent in await sse.rest()]
        assert names == ["agent_execution_started", "agent_execution_completed", "task_completed"]

    play(scenario)


def test_an_end_that_nobody_tells_to_an_open_stream_is_told_from_the_row(
    run: Run, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SILENCE_SECONDS", 0.02)

    async def scenario() -> None:
        async with run.opened() as sse:
            await run.start()
            await sse.take(1)
            await run.settle("failed")
            names = [sent.event["event"] for sent in await sse.rest()]
        assert names == ["agent_execution_failed", "task_failed"]

    play(scenario)


def test_the_runs_end_is_not_told_twice(run: Run, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "GRACE_SECONDS", 3_600)
    monkeypatch.setattr(following, "SILENCE_SECONDS", 0.02)

    async def scenario() -> None:
        async with run.opened() as sse:
            await run.start()
            await run.settle()
            run_end, _ = ending_of(run.task)
            await run.append(run_end)
            assert await sse.take(2) == run.told
            monkeypatch.setattr(following, "GRACE_SECONDS", 0)
            names = [sent.event["event"] for sent in await sse.rest()]
        assert names == ["task_completed"]

    play(scenario)


# --- A layer that fails, and clients that go --------------------------------------------------------


def test_events_whose_hints_are_lost_are_found_in_the_log(
    run: Run, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "pubsub_channel", lambda group: "nooble:test:nowhere")

    async def scenario() -> None:
        async with run.opened() as sse:
            await run.play()
            assert await sse.rest() == run.told

    play(scenario)


@pytest.mark.parametrize("method", ["new_channel", "group_add"])
def test_a_layer_that_cannot_be_joined_is_joined_later(
    run: Run, hasty: None, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    proxy = RedisPubSubChannelLayer.__getattr__
    failed, enough = [], asyncio.Event()

    def fragile(layer: Any, name: str) -> Any:
        async def fails(*args: Any) -> Any:
            failed.append(args)
            if len(failed) == 3:
                enough.set()
            raise redis.ConnectionError()

        return fails if name == method and len(failed) < 3 else proxy(layer, name)

    monkeypatch.setattr(RedisPubSubChannelLayer, "__getattr__", fragile)

    async def scenario() -> None:
        before = await layer_state()
        async with run.opened() as sse:
            await run.start()
            assert await sse.take(1) == run.told
            await enough.wait()
            await run.say("a ")
            await run.settle()
            await run.tell_end()
            assert await sse.rest() == run.told[1:]
        assert await layer_state() == before

    play(scenario)


@pytest.mark.parametrize("error", [redis.ConnectionError(), redis.TimeoutError(), OSError()])
def test_a_log_that_is_away_is_read_later(
    run: Run, hasty: None, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    really, errors = log.read, [error] * 3

    async def fragile(*args: Any) -> Any:
        if errors:
            raise errors.pop()
        return await really(*args)

    monkeypatch.setattr(log, "read", fragile)

    async def scenario() -> None:
        await run.play()
        async with run.opened() as sse:
            assert await sse.rest() == run.told
        assert errors == []

    play(scenario)


def test_a_database_that_is_away_holds_a_snapshot_up(
    run: Run, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, errors = following.task_snapshot, [OperationalError()] * 3

    async def fragile(*args: Any) -> Any:
        if errors:
            raise errors.pop()
        return await really(*args)

    monkeypatch.setattr(following, "task_snapshot", fragile)

    async def scenario() -> None:
        await run.play()
        await run.lose_log()
        async with run.opened("?after=1") as sse:
            names = [sent.event["event"] for sent in await sse.rest()]
        assert names == ["snapshot", "agent_execution_completed", "task_completed"]
        assert errors == []

    play(scenario)


def test_a_hint_of_another_session_is_no_event(run: Run) -> None:
    async def scenario() -> None:
        async with run.opened() as sse:
            await run.start()
            await sse.take(1)
            for foreign in ({"tenant_id": "other"}, {"session_id": "other"}, {"seq": 1}):
                message = {
                    "type": "session.event",
                    "tenant_id": run.task.tenant_id,
                    "session_id": run.task.session_id,
                    "seq": 2,
                    "text": json.dumps({"task_id": str(run.task.pk), "event": "forged"}),
                }
                await get_channel_layer().group_send(run.name, message | foreign)
            await run.say("a ")
            assert await sse.take(1) == run.told[1:]

    play(scenario)


def test_comments_keep_a_silent_stream_open(run: Run, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "SILENCE_SECONDS", 0.01)

    async def scenario() -> None:
        async with run.opened() as sse:
            while sse.comments < 5:
                await sse._more()
                sse.comments += sse._unread.count(b":\n\n")
                sse._unread = b""

    play(scenario)


@pytest.mark.parametrize("moment", ["at once", "waiting", "behind", "ended"])
def test_a_client_that_goes_away_leaves_nothing_behind(run: Run, moment: str) -> None:
    async def scenario() -> None:
        before, tasks = await layer_state(), asyncio.all_tasks()
        async with run.opened() as sse:
            if moment != "at once":
                await run.start()
                await sse.take(1)
            if moment == "behind":
                for _ in range(50):
                    await run.say("x")
            if moment == "ended":
                await run.settle()
                await run.tell_end()
                await sse.rest()
                # More than the stream wanted to hear.
                await run.note()
        assert await layer_state() == before
        async with asyncio.timeout(PATIENCE):
            while extra := {task for task in asyncio.all_tasks() - tasks if not _of_the_layer(task)}:
                await asyncio.wait(extra, timeout=0.05)

    play(scenario)


def _of_the_layer(task: asyncio.Task[Any]) -> bool:
    """The layer's receiver is started by the first who listens, and stays."""
    return "_do_receiving" in repr(task.get_coro())


def test_open_streams_hold_no_thread(run: Run) -> None:
    """More streams than the handler has threads, and requests are answered all the same."""

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(run.opened()) for _ in range(40)]
            await run.start()
            for sse in streams:
                assert await sse.take(1) == run.told
            async with run.opened("?after=x") as refused:
                assert refused.status == 422

    play(scenario)
