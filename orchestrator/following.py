"""One task's events as they come, for those who wait on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from channels.layers import get_channel_layer

from core.away import SERVICE_AWAY
from core.errors import TaskNotFound
from core.events import log
from core.events.base import Event, with_seq
from core.events.groups import log_name
from core.models import Task
from core.tenancy import tenant_scope
from orchestrator.events import ending_of
from orchestrator.selectors import settled_before
from orchestrator.snapshots import in_thread, task_snapshot

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0  # of silence, until the log's tail is looked at: a lost hint leaves no gap to see
SILENCE_SECONDS = 15.0  # without an event, until the follower is told that there is none
GRACE_SECONDS = 5.0  # after a task was settled, in which the log may still get its end

# The number of an end that stands in no log: above every seq, so that a resume after it finds nothing.
END = 10**15 - 1

RUN_ENDS = ("agent_execution_completed", "agent_execution_failed")
TASK_ENDS = ("task_completed", "task_failed")


@dataclass(frozen=True, slots=True)
class Told:
    """One event, parsed and as clients get it. `number` is where a client comes back after it."""

    number: int | None
    text: str
    event: dict[str, Any]


class Follower:
    """Follows one task up to its last event. In between it holds no thread and no database connection.

    The log is the truth. Hints only say that there is something to read, and are lost now and then.
    """

    def __init__(
        self, tenant_id: str, session_id: str, task_id: uuid.UUID, cursor: int = 0, is_final: bool = False
    ) -> None:
        self._task_id = task_id
        self._tenant_id, self._session_id = tenant_id, session_id
        self._name = log_name(tenant_id, session_id, task_id)
        self._is_final = is_final
        self._cursor = cursor  # in the log
        self._run_ended = self._ended = False  # as told to this follower

    async def events(self) -> AsyncGenerator[Told | None, None]:
        """What is told of the task, from the cursor on; None when there was nothing for 15 s."""
        hints = _Hints(self._name)
        try:
            await hints.join()
            async for told in self._spoken(hints):
                yield told
        finally:
            await hints.leave()

    async def _spoken(self, hints: _Hints) -> AsyncIterator[Told | None]:
        hint: dict[str, Any] | None = None
        spoke, asked = time.monotonic(), -CHECK_SECONDS
        while True:
            try:
                async for told in self._news(hint):
                    yield told
                    spoke = time.monotonic()
                now = time.monotonic()
                is_silent = now - spoke >= SILENCE_SECONDS
                if not self._ended and (self._is_final or is_silent) and now - asked >= CHECK_SECONDS:
                    asked = now
                    async for told in self._overdue():
                        yield told
            except SERVICE_AWAY as error:
                logger.warning("who follows task %s waits: %s", self._task_id, error)
            if self._ended or _is_cancelled():
                return
            if time.monotonic() - spoke >= SILENCE_SECONDS:
                yield None
                spoke = time.monotonic()
            hint = await hints.next(CHECK_SECONDS)

    async def _news(self, hint: dict[str, Any] | None) -> AsyncIterator[Told]:
        """What a hint brings; without one, and when it leaves a gap, what the log holds after the cursor."""
        if hint is not None:
            if (hint["tenant_id"], hint["session_id"]) != (self._tenant_id, self._session_id):
                return
            if hint["seq"] <= self._cursor:
                return
            if hint["seq"] == self._cursor + 1:
                for told in self._told(hint["seq"], hint["text"]):
                    yield told
                return
        while not self._ended:
            try:
                events = await log.read(self._name, self._cursor)
            except log.Hole:
                async for told in self._snapshot():
                    yield told
                continue
            if not events:
                return
            for seq, body in events:
                for told in self._told(seq, with_seq(body, seq)):
                    yield told
                if self._ended:
                    return

    def _told(self, seq: int, text: str) -> list[Told]:
        """The log's next event, if it is our task's."""
        self._cursor = seq
        task_id = str(self._task_id)
        if task_id not in text:
            return []
        event = orjson.loads(text)
        if event["task_id"] != task_id:
            return []
        self._ended = _is_last(event)
        self._run_ended = self._run_ended or ends(event)
        return [Told(seq, text, event)]

    async def _snapshot(self) -> AsyncIterator[Told]:
        text, self._cursor = await task_snapshot(self._tenant_id, self._session_id, self._task_id)
        yield Told(self._cursor, text, orjson.loads(text))
        async for told in self._overdue():
            yield told

    async def _overdue(self) -> AsyncIterator[Told]:
        """The end of a settled task from its row, where the log will not tell it any more."""
        try:
            task, long_ago = await in_thread(self._row)
        except TaskNotFound:
            self._ended = True  # deleted with its session: nobody tells its end
            return
        self._is_final = task.is_final
        end = await log.end_of(self._name, self._task_id)
        # One that nobody has told may still be on its way.
        if not task.is_final or not (long_ago if end is None else end <= self._cursor):
            return
        *earlier, last = ending_of(task)
        if not self._run_ended:
            for event in earlier:
                yield _unnumbered(event, None)
        self._ended = True
        yield _unnumbered(last, END)

    def _row(self) -> tuple[Task, bool]:
        with tenant_scope(self._tenant_id):
            return settled_before(self._task_id, GRACE_SECONDS)


def ends(event: dict[str, Any]) -> bool:
    """Whether the answer is all there, or none is to come: the row is settled."""
    return event["event"] in RUN_ENDS or _is_last(event)


def _is_last(event: dict[str, Any]) -> bool:
    """Whether this is the task's last event."""
    return event["event"] in TASK_ENDS or (
        event["event"] == "task_status_update" and event["data"]["status"] == Task.Status.CANCELLED
    )


def _unnumbered(event: Event, number: int | None) -> Told:
    """An event that stands in no log."""
    text = with_seq(event.body(), None)
    return Told(number, text, orjson.loads(text))


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
