"""The open sockets of this web process: counted, and pinged."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any, Protocol

import redis
from django.conf import settings

from core import valkey
from core.events.base import control

logger = logging.getLogger(__name__)

_COUNTS = "nooble:sockets"
_PROCESS = f"{os.getpid()}-{time.time_ns()}"
BEAT_SECONDS = 5.0
STALE_SECONDS = 3 * BEAT_SECONDS

PING = control("ping")


class Socket(Protocol):
    next_ping: float

    async def send(self, text_data: str | None = None) -> None: ...


_open: set[Socket] = set()
_beat: asyncio.Task[None] | None = None


def opened(socket: Socket) -> None:
    """Count the socket and ping it from now on. Call it on the server's loop."""
    global _beat
    socket.next_ping = time.monotonic() + settings.WEBSOCKET_PING_INTERVAL
    _open.add(socket)
    if _beat is None:
        _beat = asyncio.create_task(_beat_forever())


def closed(socket: Socket) -> None:
    _open.discard(socket)


async def _beat_forever() -> None:
    """Every second: ping who is due. Every few: tell the others how many sockets are ours."""
    tell_at = 0.0
    while True:
        now = time.monotonic()
        for socket in [socket for socket in _open if socket.next_ping <= now]:
            socket.next_ping = now + settings.WEBSOCKET_PING_INTERVAL
            await socket.send(text_data=PING)
        if now >= tell_at:
            tell_at = now + BEAT_SECONDS
            try:
                await valkey.async_client().hset(_COUNTS, _PROCESS, f"{len(_open)} {time.time()}")
            except redis.RedisError:
                logger.warning("the count of sockets is not told: Valkey is away")
        await asyncio.sleep(min(1.0, settings.WEBSOCKET_PING_INTERVAL / 4))


def totals() -> dict[str, Any]:
    """Open sockets over all web processes: ours now, the others' as they told it last. Raises RedisError."""
    counts = {_PROCESS: len(_open)}
    known: dict[bytes, bytes] = valkey.client().hgetall(_COUNTS)  # type: ignore[assignment]
    for process, told in known.items():
        count, at = told.split()
        if time.time() - float(at) > STALE_SECONDS:
            valkey.client().hdel(_COUNTS, process.decode())
        elif process.decode() != _PROCESS:
            counts[process.decode()] = int(count)
    return {"connections": sum(counts.values()), "processes": len(counts)}
