"""The events of one task as Server-Sent Events, for clients without a WebSocket."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import orjson
from channels.layers import get_channel_layer
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from conversations.selectors import question_seq
from core.api.views import ApiView
from core.away import SERVICE_AWAY
from core.errors import ValidationFailed
from core.events import log
from core.events.base import with_seq
from core.events.groups import session_name
from core.models import Task
from core.selectors import task_origin
from core.tenancy import tenant_scope
from orchestrator.events import ending_of
from orchestrator.selectors import chat_task, settled_before, task_tenant
from orchestrator.snapshots import in_thread, task_snapshot

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0  # of silence, until the log's tail is looked at: a lost hint leaves no gap to see
COMMENT_SECONDS = 15.0  # of silence, until a comment keeps proxies from closing the connection
GRACE_SECONDS = 5.0  # after a task was settled, in which the log may still get its end

# The id of an end that stands in no log: above every seq, so that a resume after it finds nothing.
END = 10**15 - 1

COMMENT = b":\n\n"
RUN_ENDS = ("agent_execution_completed", "agent_execution_failed")
TASK_ENDS = ("task_completed", "task_failed")


class TaskStreamView(ApiView):
    http_method_names = ["get", "options"]

    @extend_schema(
        operation_id="chat_stream",
        auth=[],
        parameters=[
            OpenApiParameter("tenant_id", str, description="The task's tenant; another one answers 404"),
            OpenApiParameter("after", int, description="The seq of the last event that the client has"),
            OpenApiParameter(
                "Last-Event-ID", str, OpenApiParameter.HEADER, description="Like `after`, and stronger"
            ),
        ],
        responses={(200, "text/event-stream"): OpenApiTypes.STR, 204: None},
    )
    def get(self, request: Request, task_id: str) -> HttpResponseBase:
        """The events of a task as Server-Sent Events, from its first to its last.

        `data` is one event as a WebSocket tells it, `id` its seq. Where the log no longer reaches back, a
        `snapshot` comes first. 204: the client has had the last event.
        """
        after = _seq(request, "after", request.query_params.get("after"))
        if header := request.headers.get("Last-Event-ID"):
            after = _seq(request, "Last-Event-ID", header)
        with tenant_scope(task_tenant(task_id, request.query_params.get("tenant_id") or None)):
            task = chat_task(task_id)
            # What came before the question is of other tasks.
            first = question_seq(task_origin(task))
        end = log.end_of_sync(session_name(task.tenant_id, task.session_id), task.pk)
        if (end is not None and after >= end) or (task.is_final and after >= END):
            return HttpResponse(status=204)
        return StreamingHttpResponse(
            TaskStream(task, max(after, first)).frames(),
            content_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        """Whoever accepts the stream gets its errors, too."""
        negotiated: tuple[BaseRenderer, str] = super().perform_content_negotiation(request, force=True)
        return negotiated


def _seq(request: Request, name: str, text: str | None) -> int:
    if text is None:
        return 0
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(END)):
        raise ValidationFailed(details={name: "a seq: a whole number from 0"})
    return int(text)


class TaskStream:
    """One client's stream. Between two frames it holds no thread and no database connection.

    The log is the truth. Hints only say that there is something to read, and are lost now and then.
    """

    def __init__(self, task: Task, cursor: int) -> None:
        self._task_id = task.pk
        self._tenant_id, self._session_id = task.tenant_id, task.session_id
        self._name = session_name(task.tenant_id, task.session_id)
        self._is_final = task.is_final
        self._cursor = cursor  # in the session's log
        self._run_ended = self._ended = False  # as told to this client

    async def frames(self) -> AsyncIterator[bytes]:
        """What goes over the wire, up to the task's last event."""
        yield COMMENT  # the headers leave with it
        hints = _Hints(self._name)
        try:
            await hints.join()
            async for frame in self._spoken(hints):
                yield frame
        finally:
            await hints.leave()

    async def _spoken(self, hints: _Hints) -> AsyncIterator[bytes]:
        hint: dict[str, Any] | None = None
        spoke, asked = time.monotonic(), -CHECK_SECONDS
        while True:
            try:
                async for frame in self._news(hint):
                    yield frame
                    spoke = time.monotonic()
                now = time.monotonic()
                is_silent = now - spoke >= COMMENT_SECONDS
                if not self._ended and (self._is_final or is_silent) and now - asked >= CHECK_SECONDS:
                    asked = now
                    async for frame in self._overdue():
                        yield frame
            except SERVICE_AWAY as error:
                logger.warning("the stream of task %s waits: %s", self._task_id, error)
            if self._ended or _is_cancelled():
                return
            if time.monotonic() - spoke >= COMMENT_SECONDS:
                yield COMMENT
                spoke = time.monotonic()
            hint = await hints.next(CHECK_SECONDS)

    async def _news(self, hint: dict[str, Any] | None) -> AsyncIterator[bytes]:
        """What a hint brings; without one, and when it leaves a gap, what the log holds after the cursor."""
        if hint is not None:
            if (hint["tenant_id"], hint["session_id"]) != (self._tenant_id, self._session_id):
                return
            if hint["seq"] <= self._cursor:
                return
            if hint["seq"] == self._cursor + 1:
                for frame in self._told(hint["seq"], hint["text"]):
                    yield frame
                return
        while not self._ended:
            try:
                events = await log.read(self._name, self._cursor)
            except log.Hole:
                async for frame in self._snapshot():
                    yield frame
                continue
            if not events:
                return
            for seq, body in events:
                for frame in self._told(seq, with_seq(body, seq)):
                    yield frame
                if self._ended:
                    return

    def _told(self, seq: int, text: str) -> list[bytes]:
        """The session's next event: a frame, if it is our task's."""
        self._cursor = seq
        task_id = str(self._task_id)
        if task_id not in text:
            return []
        event = orjson.loads(text)
        if event["task_id"] != task_id:
            return []
        if event["event"] in RUN_ENDS:
            self._run_ended = True
        self._ended = event["event"] in TASK_ENDS or (
            event["event"] == "task_status_update" and event["data"]["status"] == Task.Status.CANCELLED
        )
        return [_frame(text, seq)]

    async def _snapshot(self) -> AsyncIterator[bytes]:
        text, self._cursor = await task_snapshot(self._tenant_id, self._session_id, self._task_id)
        yield _frame(text, self._cursor)
        async for frame in self._overdue():
            yield frame

    async def _overdue(self) -> AsyncIterator[bytes]:
        """The end of a settled task from its row, where the log will not tell it any more."""
        task, long_ago = await in_thread(self._row)
        self._is_final = task.is_final
        end = await log.end_of(self._name, self._task_id)
        # One that nobody has told may still be on its way.
        if not task.is_final or not (long_ago if end is None else end <= self._cursor):
            return
        *earlier, last = ending_of(task)
        if not self._run_ended:
            for event in earlier:
                yield _frame(with_seq(event.body(), None))
        self._ended = True
        yield _frame(with_seq(last.body(), None), END)

    def _row(self) -> tuple[Task, bool]:
        with tenant_scope(self._tenant_id):
            return settled_before(self._task_id, GRACE_SECONDS)


def _frame(text: str, number: int | None = None) -> bytes:
    """One event of the stream. JSON holds no line breaks of its own."""
    head = "" if number is None else f"id: {number}\n"
    return f"{head}data: {text}\n\n".encode()


def _is_cancelled() -> bool:
    """Whether the client has gone: `asyncio.wait_for` of Python 3.11, in redis-py, can swallow the word."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Hints:
    """What a session's group is told. It survives the channel layer's failures: then nothing is heard."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._layer = get_channel_layer()
        self._channel = ""
        self._joining: asyncio.Task[bool] | None = None
        self._receiving: asyncio.Task[dict[str, Any]] | None = None

    async def join(self) -> bool:
        """Hear from now on; False when the layer is away."""
        # A task, because it must not be cut in the middle: the layer would keep half of it.
        self._joining = asyncio.create_task(self._join())
        await asyncio.wait({self._joining})
        return self._joining.result()

    async def _join(self) -> bool:
        try:
            if self._receiving is None:
                self._channel = await self._layer.new_channel()
                self._listen()
            await self._layer.group_add(self._group, self._channel)
        except SERVICE_AWAY as error:
            logger.warning("a stream hears nothing: %s", error)
            return False
        return True

    def _listen(self) -> None:
        self._receiving = asyncio.create_task(self._layer.receive(self._channel))

    async def next(self, seconds: float) -> dict[str, Any] | None:
        """The next hint; None when there was none for so long, and when some may have been missed."""
        if self._joining is None or not self._joining.result() or self._receiving is None:
            await asyncio.sleep(seconds)
            await self.join()
            return None
        await asyncio.wait({self._receiving}, timeout=seconds)
        if not self._receiving.done():
            return None
        hint = self._receiving.result()
        self._listen()
        return hint

    async def leave(self) -> None:
        """The layer keeps nothing of us."""
        if self._joining is not None:
            await asyncio.wait({self._joining})
        if self._receiving is None:
            return
        with suppress(*SERVICE_AWAY):
            await self._layer.group_discard(self._group, self._channel)
        # The layer forgets a channel when somebody who waits on it is cancelled, and not before.
        while True:
            await asyncio.sleep(0)
            self._receiving.cancel()
            await asyncio.wait({self._receiving})
            if self._receiving.cancelled():
                return
            self._listen()
