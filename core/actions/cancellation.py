"""How a running task hears that somebody wants it to stop.

The row says so first (`cancelling`); the hint, on one pub/sub channel that every worker process
listens to, makes it quick.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import redis

from core import aio, valkey

logger = logging.getLogger(__name__)
T = TypeVar("T")
CHANNEL = "nooble:cancel"

_watches: dict[bytes, Watch] = {}  # by the task's id as a hint spells it
_lock = threading.Lock()
_listening: threading.Event | None = None


class Watch:
    """One task of this process. Touched on the loop only, but for its making and its end."""

    def __init__(self) -> None:
        self._requested = False
        self._coroutine: asyncio.Task[Any] | None = None

    def request(self) -> None:
        """Cancel the coroutine, once: a second hint must not disturb its last words."""
        if self._requested:
            return
        self._requested = True
        if self._coroutine is not None:
            self._coroutine.cancel()

    async def guard(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await the coroutine; raises CancelledError once somebody asked for the task's end."""
        self._coroutine = asyncio.ensure_future(coroutine)
        if self._requested:
            self._coroutine.cancel()
        try:
            result: T = await self._coroutine
            return result
        finally:
            self._coroutine = None


@contextmanager
def watching(task_id: uuid.UUID) -> Iterator[bool]:
    """Hear hints for this task. Enter it before the claim: a hint can follow at once.

    Yields False when this process has the task already: a message that came twice.
    """
    _listen()
    key, watch = _spelled(task_id), Watch()
    ours = _watches.setdefault(key, watch) is watch
    try:
        yield ours
    finally:
        if ours:
            del _watches[key]


async def until_cancelled(task_id: uuid.UUID, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await the coroutine on the process's loop; raises asyncio.CancelledError on a hint.

    Only this coroutine is cancelled: what the caller awaits afterwards is not disturbed.
    """
    return await _watches[_spelled(task_id)].guard(coroutine)


def hint(task_id: uuid.UUID) -> None:
    """Tell every worker process that the row of this task says `cancelling`."""
    try:
        valkey.client().publish(CHANNEL, _spelled(task_id))
    except redis.RedisError:
        logger.warning("no cancel hint for task %s: Valkey is away", task_id)


def _spelled(task_id: uuid.UUID) -> bytes:
    return str(task_id).encode()


def _listen() -> None:
    """Start the process's listener and wait until it listens."""
    global _listening
    with _lock:
        if _listening is None:
            _listening = threading.Event()
            asyncio.run_coroutine_threadsafe(_listener(_listening), aio.loop())
    _listening.wait(timeout=5)


async def _listener(ready: threading.Event) -> None:
    while True:
        try:
            async with valkey.async_client().pubsub() as pubsub:
                await pubsub.subscribe(CHANNEL)
                while True:
                    message = await pubsub.get_message(timeout=None)
                    if message is None:
                        continue
                    if message["type"] == "subscribe":
                        ready.set()
                    elif (watch := _watches.get(message["data"])) is not None:
                        watch.request()
        except (redis.RedisError, OSError) as error:
            logger.warning("listening for cancels failed: %s", error)
            await asyncio.sleep(0.5)
