"""From a session's log to one socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import redis
from django.db import OperationalError

from core.events import log
from core.events.base import with_seq
from orchestrator.sockets.link import Link

logger = logging.getLogger(__name__)

# How much of a log is in memory beside what is on its way to clients: so many readings at once in a
# process, each of so many events, fewer where they are large.
READINGS = 8
FIRST_SLICE, LARGEST_SLICE = 8, 64  # events
SLICE_BYTES = 64 * 1024

_readings = asyncio.Semaphore(READINGS)

Send = Callable[[str], Awaitable[None]]
Snapshot = Callable[[], Awaitable[tuple[str, int]]]


class Forwarding:
    """Sends a session's events to one client: in order, each once, as fast as it reads.

    The log is the source and a hint only says "look": while the client does not keep up, or a hint
    was lost, nothing is kept here but the cursor, the seq of the last event that was sent. Whatever
    finds it behind wakes the one task that reads on from there; until it is done, hints are not
    forwarded by themselves.
    """

    def __init__(self, name: str, cursor: int, link: Link, send: Send, snapshot: Snapshot) -> None:
        self.name = name
        self.cursor = cursor
        self._link = link
        self._send = send
        self._snapshot = snapshot
        self._order = asyncio.Lock()
        self._behind = False
        self._is_over = False
        self._task: asyncio.Task[None] | None = None

    async def hear(self, seq: int, text: str) -> None:
        """A hint that carries its event: forward it if it is the next, drop a repeat, else read the log."""
        if seq <= self.cursor or self._is_over:
            return
        if seq > self.cursor + 1 or self._order.locked() or self._link.full:
            self.wake()
            return
        async with self._order:
            self.cursor = seq
            await self._send(text)

    def look(self, tail: int) -> None:
        """The log's tail, as somebody saw it: a hint may have been lost, or the log."""
        if tail != self.cursor:
            self.wake()

    def wake(self) -> None:
        """Send what the log holds after the cursor."""
        self._behind = True
        if self._task is None and not self._is_over:
            self._task = asyncio.create_task(self._catch_up())

    def stop(self) -> None:
        """Nothing more is sent."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()

    async def _catch_up(self) -> None:
        try:
            async with self._order:
                while self._behind and not self._is_over:
                    self._behind = False
                    await self._read_on()
        except (redis.RedisError, OperationalError, OSError) as error:
            # The look at the tails, every few seconds, comes back to it.
            logger.warning("a socket is behind its log: %s", error)
        except Exception:
            logger.exception("a socket is behind its log")
        finally:
            self._task = None

    async def _read_on(self) -> None:
        """Send everything after the cursor; where the log does not reach back to it, how things stand."""
        stood = False
        size = FIRST_SLICE
        while not self._is_over:
            await self._link.drained()
            try:
                async with _readings:
                    read = await self._read_slice(size)
            except log.Hole:
                if stood:
                    return  # lost again in this moment: the next look at the tails comes back to it
                stood = True
                text, seq = await self._snapshot()
                await self._link.drained()
                self.cursor = seq
                await self._send(text)
                continue
            if not read:
                return
            size = max(1, size // 2) if read > SLICE_BYTES else min(2 * size, LARGEST_SLICE)

    async def _read_slice(self, size: int) -> int:
        """Send the next events, as far as there is room for them; gives the bytes read, 0 at the tail."""
        events = await log.read(self.name, self.cursor, size)
        for seq, body in events:
            if self._link.full:
                break  # read again when there is room
            self.cursor = seq
            await self._send(with_seq(body, seq))
        return sum(len(body) for _, body in events)
