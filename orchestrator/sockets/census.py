"""How many sockets are open, over all web processes together, and whether one more may come."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import redis
from django.conf import settings

from core import valkey
from core.events import log

STALE_SECONDS = 6.0  # a process that has told nothing for so long is dead

# Whether it may come in, and the tail of its log.
Answer = tuple[bool, int | None]

_COUNTS = "nooble:sockets"
_script = (Path(__file__).parent / "admit.lua").read_text()
_sha = hashlib.sha1(_script.encode(), usedforsecurity=False).hexdigest()


class Census:
    """The sockets of this web process, counted with those of the others.

    One question at a time is under way, so the counts are told in the order in which they were true.
    Connects that come meanwhile are in the next question, all of them in one.
    """

    def __init__(self) -> None:
        self.process = f"{os.getpid()}-{time.time_ns()}"
        self.held = 0
        self._asking = asyncio.Lock()
        self._waiting: list[tuple[str | None, asyncio.Future[Answer]]] = []
        self._door: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether our own sockets leave no room; it costs nothing to ask."""
        return self.held >= settings.MAX_WEBSOCKET_CONNECTIONS

    async def admit(self, name: str | None) -> Answer:
        """Whether one more socket may come in, and the tail of the log `name` that it wants to hear, if any.

        It is counted then, until `release`. Raises redis.RedisError or OSError.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((name, answer))
        if self._door is None:
            self._door = asyncio.create_task(self._open_door())
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and not answer.exception() and answer.result()[0]:
                self.release()  # it came in at the very moment at which nobody waited any more
            raise

    def release(self) -> None:
        """The others hear of it with the next question, or the next `tell`."""
        self.held -= 1

    async def tell(self) -> None:
        """Keep our count alive. Raises redis.RedisError or OSError."""
        async with self._asking:
            await self._ask(wanting=0)

    async def leave(self) -> None:
        """Our sockets count no more. Raises redis.RedisError or OSError."""
        async with self._asking:
            await valkey.async_client().hdel(_COUNTS, self.process)

    async def _open_door(self) -> None:
        try:
            async with self._asking:
                while self._waiting:
                    batch, self._waiting = self._waiting, []
                    await self._let_in(batch)
        finally:
            self._door = None

    async def _let_in(self, batch: list[tuple[str | None, asyncio.Future[Answer]]]) -> None:
        names = [name for name, _ in batch if name is not None]
        try:
            room, tails = await asyncio.gather(self._ask(wanting=len(batch)), log.tails(names))
        except (redis.RedisError, OSError) as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        found = iter(tails)
        for name, answer in batch:
            tail = next(found) if name is not None else None
            if answer.done():
                continue  # nobody waits any more
            answer.set_result((room > 0, tail))
            if room > 0:
                room -= 1
                self.held += 1

    async def _ask(self, wanting: int) -> int:
        arguments = (1, _COUNTS, self.process, self.held, wanting, settings.MAX_WEBSOCKET_CONNECTIONS)
        client = valkey.async_client()
        try:
            admitted: Any = await client.evalsha(_sha, *arguments, STALE_SECONDS)
        except redis.exceptions.NoScriptError:
            admitted = await client.eval(_script, *arguments, STALE_SECONDS)
        return int(admitted)


@functools.cache
def census() -> Census:
    """This process's."""
    return Census()


def totals() -> dict[str, Any]:
    """Open sockets over all web processes: ours now, the others' as they told it last.

    For threads. Raises redis.RedisError.
    """
    pipeline = valkey.client().pipeline(transaction=False)
    pipeline.time()
    pipeline.hgetall(_COUNTS)
    (seconds, _), known = pipeline.execute()
    ours = census()
    counts = {ours.process: ours.held}
    for process, told in known.items():
        count, at = told.split()
        if seconds - float(at) <= STALE_SECONDS:
            counts.setdefault(process.decode(), int(count))
    return {"connections": sum(counts.values()), "processes": len(counts)}
