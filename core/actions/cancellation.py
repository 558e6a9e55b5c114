"""The hint that a task is to stop, on one pub/sub channel that every worker process listens to.

The row says so first (`cancelling`); a hint that is lost costs one renewal of the lease.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid

import redis

from core import aio, valkey
from core.actions import running

logger = logging.getLogger(__name__)
CHANNEL = "nooble:cancel"

_lock = threading.Lock()
_listening: threading.Event | None = None


def hint(task_id: uuid.UUID) -> None:
    """Tell every worker process that the row of this task says `cancelling`."""
    try:
        valkey.client().publish(CHANNEL, str(task_id).encode())
    except redis.RedisError:
        logger.warning("no cancel hint for task %s: Valkey is away", task_id)


def listen() -> None:
    """Start the process's listener and wait until it listens, as far as Valkey is there."""
    global _listening
    with _lock:
        if _listening is None:
            _listening = threading.Event()
            asyncio.run_coroutine_threadsafe(_listener(_listening), aio.loop())
    _listening.wait(timeout=1)


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
                    else:
                        _heard(message["data"])
        except (redis.RedisError, OSError) as error:
            # Whoever starts a task now does not wait for us: the renewal of its lease tells it.
            ready.set()
            logger.warning("listening for cancels failed: %s", error)
            await asyncio.sleep(0.5)


def _heard(spelled: bytes) -> None:
    try:
        task_id = uuid.UUID(spelled.decode())
    except ValueError:
        logger.warning("a cancel hint that is no id: %r", spelled[:80])
        return
    running.stop(task_id, running.StopReason.CANCELLED)
