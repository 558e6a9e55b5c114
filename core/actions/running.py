"""The tasks that run in this process, and how they hear that they are to stop."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, TypeVar

from core import aio

T = TypeVar("T")


class StopReason(StrEnum):
    """Somebody cancelled the task; the process ends and hands it over; it is another worker's now."""

    CANCELLED = "cancelled"
    HANDED_OVER = "handed_over"
    LOST = "lost"


class Stopped(Exception):
    """The run is to end before its time."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Run:
    """One task of this process; `attempt` is None until it has been claimed."""

    def __init__(self, task_id: uuid.UUID) -> None:
        self.task_id = task_id
        self.attempt: int | None = None
        self._reason: StopReason | None = None
        self._coroutine: asyncio.Task[Any] | None = None

    def stop(self, reason: StopReason) -> None:
        """Cancel the coroutine, once: a second word must not disturb its last ones. On the loop only."""
        if self._reason is not None:
            return
        self._reason = reason
        if self._coroutine is not None:
            self._coroutine.cancel()

    async def guard(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await the coroutine; raises Stopped once somebody asked for the run's end."""
        self._coroutine = asyncio.ensure_future(coroutine)
        if self._reason is not None:
            self._coroutine.cancel()
        try:
            result: T = await self._coroutine
            return result
        except asyncio.CancelledError:
            if self._reason is None:
                raise
            raise Stopped(self._reason) from None
        finally:
            self._coroutine = None


_runs: dict[uuid.UUID, Run] = {}
draining = threading.Event()  # the process takes no more tasks


@contextmanager
def running(task_id: uuid.UUID) -> Iterator[Run | None]:
    """The task is this process's. Enter it before the claim: a word to stop can follow at once.

    Yields None when this process has the task already: a message that came twice.
    """
    run = Run(task_id)
    ours = _runs.setdefault(task_id, run) is run
    try:
        yield run if ours else None
    finally:
        if ours:
            del _runs[task_id]


def claimed() -> dict[uuid.UUID, int]:
    """The claimed tasks of this process and which attempts they are."""
    return {task_id: run.attempt for task_id, run in list(_runs.items()) if run.attempt is not None}


async def until_stopped(task_id: uuid.UUID, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await the coroutine on the process's loop; raises Stopped when the task is to end.

    Only this coroutine is cancelled: what the caller awaits afterwards is not disturbed.
    """
    return await _runs[task_id].guard(coroutine)


def stop(task_id: uuid.UUID, reason: StopReason, attempt: int | None = None) -> None:
    """Stop the task if it runs here (as that attempt); from any thread."""
    run = _runs.get(task_id)
    if run is not None and attempt in (None, run.attempt):
        aio.loop().call_soon_threadsafe(run.stop, reason)


def hand_over() -> None:
    """Stop every task of this process: other workers go on with them."""
    for task_id in list(_runs):
        stop(task_id, StopReason.HANDED_OVER)
