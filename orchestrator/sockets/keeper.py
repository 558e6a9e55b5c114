"""The open sockets of this web process: asked for signs of life, brought up to their logs, sent away."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import redis
from channels.layers import get_channel_layer
from django.conf import settings

from core.away import SERVICE_AWAY
from core.errors import NoobleError
from core.events import log
from core.events.base import control
from orchestrator.admission import Listener, verdicts
from orchestrator.errors import NoSignOfLife, SlowReader
from orchestrator.sockets.census import Census, census
from orchestrator.sockets.forwarding import Forwarding
from orchestrator.sockets.link import Link
from orchestrator.threads import call_in

logger = logging.getLogger(__name__)

TELL_SECONDS = 2.0
TAILS_SECONDS = 5.0
RIGHTS_SECONDS = 5.0
UNEASY_SECONDS, RETRY_SECONDS = 10.0, 1.0  # for so long after one has failed, they are looked at so often
STALL_SECONDS = 10.0  # a reader may take next to nothing for so long
LIFE_SECONDS = 4 * 60 * 60.0  # then a socket moves on, to whatever process is there by then
LEAVE_SECONDS = 1.0

ALWAYS = "always"  # a group that nobody sends to

PING = control("ping")
RECONNECT = control("reconnect")

# Close codes of a socket that was open.
NOT_ALLOWED, NO_SIGN_OF_LIFE, SLOW_READER, GOING_AWAY = 4403, 4408, 4409, 1012

_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rights")


class Socket(Protocol):
    """What the keeper needs of one that is open."""

    link: Link
    forwarding: Forwarding | None  # of a log, where it hears one
    listener: Listener | None  # of a session, where it hears one

    async def send(self, text_data: str | None = None) -> None: ...

    async def refuse(self, code: int, error: NoobleError) -> None:
        """Say why in an `error` event, and close."""

    async def end(self, code: int, text: str) -> None:
        """Say a last thing, and close."""


class _Vigil:
    """When a socket was asked for a sign of life, and when it has to go."""

    def __init__(self) -> None:
        now = time.monotonic()
        self.next_ping = now + settings.WEBSOCKET_PING_INTERVAL
        self.asked_at: float | None = None
        # Those that came together do not go together.
        self.ends_at = now + LIFE_SECONDS * random.uniform(0.9, 1.0)


class Keeper:
    """Looks after every open socket of the process, by one task on the server's loop."""

    def __init__(self, count: Census) -> None:
        self._is_leaving = False
        self._census = count
        self._open: dict[Socket, _Vigil] = {}
        self._beat: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asks_again = False
        self._uneasy_until = 0.0
        self._errands: set[asyncio.Task[None]] = set()

    def opened(self, socket: Socket) -> None:
        """Look after the socket from now on. Call it on the server's loop."""
        if self._is_leaving:
            self._run(socket.end(GOING_AWAY, RECONNECT))
            return
        self._open[socket] = _Vigil()
        if self._beat is None or self._beat.done():
            self._beat = asyncio.create_task(self._beat_forever())
            self._run(self._stay_subscribed())

    def closed(self, socket: Socket) -> None:
        self._open.pop(socket, None)

    async def leave(self) -> None:
        """The process stops: every socket, also one that comes now, is told to come back and is closed."""
        self._is_leaving = True
        for socket in list(self._open):
            self._run(socket.end(GOING_AWAY, RECONNECT))
        if self._beat is not None:
            self._beat.cancel()
            with suppress(redis.RedisError, OSError):
                await asyncio.wait_for(self._census.leave(), LEAVE_SECONDS)

    async def _beat_forever(self) -> None:
        tell_at = look_at = ask_at = time.monotonic()
        while True:
            now = time.monotonic()
            for socket, vigil in list(self._open.items()):
                self._watch(socket, vigil, now)
            if now >= tell_at and (self._telling is None or self._telling.done()):
                tell_at = now + TELL_SECONDS
                self._telling = self._run(self._tell())
            if now >= look_at and (self._looking is None or self._looking.done()):
                look_at = now + (RETRY_SECONDS if now < self._uneasy_until else TAILS_SECONDS)
                self._looking = self._run(self._look_at_tails())
            if now >= ask_at:
                ask_at = now + RIGHTS_SECONDS
                self.ask_for_rights()
            await asyncio.sleep(
                min(1.0, settings.WEBSOCKET_PING_INTERVAL / 4, settings.WEBSOCKET_PING_TIMEOUT / 4)
            )

    def ask_for_rights(self) -> None:
        """Send those away who may not listen any more. Asked for while it asks, it asks once more."""
        self._asks_again = True
        if self._asking is None or self._asking.done():
            self._asking = self._run(self._ask_for_rights())

    def _run(self, errand: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """By itself: nothing that one socket waits for holds up the others."""
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
        return task

    async def _stay_subscribed(self) -> None:
        """One subscription for good: without any, the layer looks for news only every 100 ms."""
        layer = get_channel_layer()
        try:
            await layer.group_add(ALWAYS, await layer.new_channel())
        except (redis.RedisError, OSError) as error:
            logger.warning("the first events after a silence come late: %s", error)

    # --- One socket --------------------------------------------------------------------------------

    def _watch(self, socket: Socket, vigil: _Vigil, now: float) -> None:
        link = socket.link
        if vigil.asked_at is not None and link.heard_at >= vigil.asked_at:
            vigil.asked_at = None
        if link.is_stalled(STALL_SECONDS):
            self._run(socket.refuse(SLOW_READER, SlowReader()))
        elif not link.reads:
            vigil.asked_at = None
        elif vigil.asked_at is not None and now - vigil.asked_at > settings.WEBSOCKET_PING_TIMEOUT:
            self._run(socket.refuse(NO_SIGN_OF_LIFE, NoSignOfLife()))
        elif now > vigil.ends_at:
            self._run(socket.end(GOING_AWAY, RECONNECT))
        elif now >= vigil.next_ping:
            vigil.next_ping = now + settings.WEBSOCKET_PING_INTERVAL
            if vigil.asked_at is None:
                vigil.asked_at = now
            self._run(self._ping(socket))

    async def _ping(self, socket: Socket) -> None:
        await socket.send(text_data=PING)
        socket.link.ping()

    # --- All of them -------------------------------------------------------------------------------

    async def _tell(self) -> None:
        try:
            await self._census.tell()
        except (redis.RedisError, OSError) as error:
            logger.warning("the count of sockets is not told: %s", error)

    async def _look_at_tails(self) -> None:
        """A hint that was lost at the end of what was said leaves no gap to see: look at the logs."""
        forwardings = [socket.forwarding for socket in self._open if socket.forwarding is not None]
        try:
            tails = await log.tails([forwarding.name for forwarding in forwardings])
        except (redis.RedisError, OSError) as error:
            # Hints of such a time are lost, too, until their channel is back: look more often.
            logger.warning("the tails of the logs are not known: %s", error)
            self._uneasy_until = time.monotonic() + UNEASY_SECONDS
            return
        for forwarding, tail in zip(forwardings, tails, strict=True):
            forwarding.look(tail or 0)

    async def _ask_for_rights(self) -> None:
        while self._asks_again:
            self._asks_again = False
            sockets = [(socket, socket.listener) for socket in self._open if socket.listener is not None]
            if not sockets:
                return
            try:
                found = await call_in(_threads, verdicts, [listener for _, listener in sockets])
            except SERVICE_AWAY as error:
                logger.warning("who may listen is not known: %s", error)
                return
            for socket, listener in sockets:
                refusal = found.get(listener)
                if refusal is not None:
                    self._run(socket.refuse(NOT_ALLOWED, refusal))


@functools.cache
def keeper() -> Keeper:
    """This process's."""
    return Keeper(census())
