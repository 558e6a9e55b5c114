"""What every socket of the front door does: comes in, hears, answers, is looked after, goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

from autobahn.exception import Disconnected
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from django.conf import settings
from django.http import HttpRequest
from django.utils import translation

from core import metrics
from core.addresses import client_address
from core.api.errors import named
from core.api.parsers import parse_json
from core.audit import Origin, asked_by
from core.away import SERVICE_AWAY
from core.errors import (
    BodyTooLarge,
    MalformedRequest,
    NoobleError,
    RateLimited,
    ServiceUnavailable,
    ValidationFailed,
)
from core.events.base import control
from core.models.audit import AuditSource
from core.origins import origin_is_sound
from core.ratelimits import count_strangers_connect, token_refused
from orchestrator.admission import Listener
from orchestrator.errors import TooManyConnections
from orchestrator.sockets.census import census
from orchestrator.sockets.forwarding import Forwarding
from orchestrator.sockets.inbox import BURST, MAX_FRAME, RATE, Frame, Inbox
from orchestrator.sockets.keeper import keeper
from orchestrator.sockets.link import EXTENSION, Link
from orchestrator.threads import call_in

PROTOCOL = "nooble.v1"

# Close codes of a connect, or a client, that is refused.
MALFORMED, NOT_ALLOWED, UNKNOWN, TOO_LARGE, TOO_MANY, TRY_AGAIN = 4400, 4403, 4404, 4413, 4429, 1013

ADMIT_SECONDS = 3.0  # Valkey that is frozen must not hold up a connect

# Work of sockets that touches the database: bounded, and not the one thread that Channels shares.
_threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="socket")


class Refused(Exception):
    """A connect that may not be: the close code and the error that explains it."""

    def __init__(self, code: int, error: NoobleError) -> None:
        super().__init__(str(error))
        self.code = code
        self.error = error


class ClientSocket(AsyncWebsocketConsumer):  # type: ignore[misc]
    """A socket. A subclass says who may open it (`open`), and answers what its client says (`hear`).

    `messages` names the method for each kind of message that the socket's groups are sent.
    """

    messages: ClassVar[dict[str, str]] = {}
    burst: ClassVar[int] = BURST  # bytes that a client may send at once
    rate: ClassVar[float] = RATE  # bytes a second

    is_accepted = False
    is_counted = False
    has_ended = False
    forwarding: Forwarding | None = None
    listener: Listener | None = None
    origin: str | None  # of the page, if it is one
    groups: list[str]
    language: str
    address: str | None  # of the client, as far as we know it

    async def open(self) -> None:
        """Admit the client, `enter`, greet it, and let the keeper know. Raises Refused."""
        raise NotImplementedError

    async def hear(self, fields: dict[str, Any]) -> None:
        """Answer one frame of the client's. Raises NoobleError or ValueError, told as an `error` event."""
        raise NotImplementedError

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """However it ends, the socket is not counted and not told any more."""
        self.groups = []
        self.link: Link = scope.get("extensions", {}).get(EXTENSION) or Link()
        self.inbox = Inbox(self.link, self._answer, self.burst, self.rate)
        try:
            await self._listen(scope, receive, send)
        except SERVICE_AWAY as error:
            if self.is_accepted:
                raise
            # Before `connect`: there is not even a channel to be told by.
            await send({"type": "websocket.accept", "subprotocol": picked(scope)})
            await send({"type": "websocket.send", "text": control("error", named(error).as_dict())})
            await send({"type": "websocket.close", "code": TRY_AGAIN})
        finally:
            self.forget()
            for group in self.groups:
                with suppress(*SERVICE_AWAY):
                    await self.channel_layer.group_discard(group, self.channel_name)
            await self._forget_channel()

    async def _listen(self, scope: Any, receive: Any, send: Any) -> None:
        """Hear the client and the layer, one message at a time, until the client is gone.

        Channels' own loop makes a task, and waits for two, for each message: a third of a consumer's CPU.
        """
        self.scope, self.base_send = scope, send
        self.channel_layer = get_channel_layer()
        self.channel_name = await self.channel_layer.new_channel()
        self._turn = asyncio.Lock()
        listening = {
            asyncio.ensure_future(self._hear_all(receive)),
            asyncio.ensure_future(self._hear_all(self.channel_receive)),
        }
        try:
            await asyncio.wait(listening, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = [task for task in listening if task.done()]
            for task in listening:
                task.cancel()
            await asyncio.wait(listening)
        for task in ended:
            task.result()

    async def channel_receive(self) -> dict[str, Any]:
        """The next message of the layer's for this socket."""
        message: dict[str, Any] = await self.channel_layer.receive(self.channel_name)
        return message

    async def _hear_all(self, source: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        with suppress(StopConsumer):
            while True:
                message = await source()
                async with self._turn:
                    await self.dispatch(message)

    async def _forget_channel(self) -> None:
        """The layer keeps a channel until somebody who waits on it is cancelled; a hint ends the wait."""
        name = getattr(self, "channel_name", None)
        while name is not None and name in self.channel_layer.channels:
            waiting = asyncio.ensure_future(self.channel_receive())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Channels' own hops through a thread after every message, to close database connections.

        Ours are closed where they were opened: see `in_thread`.
        """
        kind = message["type"]
        name = self.messages.get(kind) or _OF_THE_SERVER[kind]
        await getattr(self, name)(message)

    async def send(self, *args: Any, **kwargs: Any) -> None:
        """To a client that has just gone, nothing: its `disconnect` is on the way."""
        with suppress(Disconnected):
            await super().send(*args, **kwargs)

    # --- Coming ------------------------------------------------------------------------------------

    async def connect(self) -> None:
        headers = dict(self.scope["headers"])
        self.address = _address(self.scope)
        self.origin = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
        if self.origin is not None and not (
            origin_is_sound(self.origin) and await self.welcomes(self.origin)
        ):
            await self.close()  # before the handshake: HTTP 403
            return
        self.language = _language(headers)
        await self.accept(picked(self.scope))
        self.is_accepted = True
        try:
            with asked_by(Origin(AuditSource.SOCKET, ip=self.address)):
                await self._open()
        except Refused as refused:
            await self.refuse(refused.code, refused.error)
        except RateLimited as error:
            await self.refuse(TOO_MANY, error)
        except SERVICE_AWAY as error:
            await self.refuse(TRY_AGAIN, named(error))

    async def welcomes(self, origin: str) -> bool:
        """Whether a page of this origin may open the socket at all."""
        return True

    async def _open(self) -> None:
        """What concerns no tenant is counted by its address. Raises Refused, RateLimited."""
        try:
            await self.open()
        except Refused as refused:
            if refused.code in (UNKNOWN, MALFORMED):
                await self.in_thread(count_strangers_connect)
            raise

    def offered(self, prefix: str) -> str | None:
        """The token that the client offered with this prefix beside our subprotocol. Raises Refused."""
        offered = self.scope["subprotocols"]
        if offered and PROTOCOL not in offered:
            raise Refused(MALFORMED, ValidationFailed(details={"subprotocol": f"offer {PROTOCOL}"}))
        tokens = (name.removeprefix(prefix) for name in offered if name.startswith(prefix))
        return next(tokens, None)

    async def enter(self, groups: list[str], log: str | None = None) -> int | None:
        """Join the groups and be counted; gives the tail of that log. Raises Refused."""
        room = not census().is_full
        last_seq = None
        if room:
            self.groups = groups
            for group in groups:
                await self.channel_layer.group_add(group, self.channel_name)
            try:
                room, last_seq = await asyncio.wait_for(census().admit(log), ADMIT_SECONDS)
            except TimeoutError:
                raise Refused(TRY_AGAIN, ServiceUnavailable()) from None
        if not room:
            limit = settings.MAX_WEBSOCKET_CONNECTIONS
            raise Refused(TOO_MANY, TooManyConnections(details={"limit": limit}))
        self.is_counted = True
        return last_seq

    # --- Going -------------------------------------------------------------------------------------

    async def refuse(self, code: int, error: NoobleError) -> None:
        """Say why, and close: with 4429 whatever the code, where it was too often."""
        with translation.override(self.language):
            told = control("error", error.as_dict())
        await self.end(TOO_MANY if isinstance(error, RateLimited) else code, told)

    async def end(self, code: int, text: str) -> None:
        """Say a last thing and close; what comes in from now on is not heard any more."""
        if self.has_ended:
            return
        self.has_ended = True
        metrics.SOCKETS_CLOSED.add(str(code))
        self.forget()
        await self.send(text_data=text)
        with suppress(Disconnected):
            await self.close(code)

    def forget(self) -> None:
        """Nothing goes in or out any more, nobody looks after this socket, and it counts no more."""
        self.inbox.drop()
        if self.forwarding is not None:
            self.forwarding.stop()
        keeper().closed(self)
        if self.is_counted:
            self.is_counted = False
            census().release()

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        """What the client said before it left is still done."""
        keeper().closed(self)
        if self.forwarding is not None:
            self.forwarding.stop()
        await self.inbox.finish()
        raise StopConsumer()

    # --- From the client ---------------------------------------------------------------------------

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.link.heard()
        if self.has_ended:
            self.link.took()  # what was already on the way when we said no
        elif not self.inbox.put(text_data):
            self.link.took()
            await self.refuse(TOO_MANY, RateLimited())

    async def _answer(self, frame: Frame) -> None:
        """One frame, one answer; only frames that are no text of ours end the socket."""
        if frame.is_binary:
            await self.refuse(MALFORMED, MalformedRequest("Binary frames are not spoken here."))
            return
        if frame.is_too_large:
            await self.refuse(TOO_LARGE, BodyTooLarge(details={"limit": MAX_FRAME}))
            return
        try:
            fields = parse_json(frame.text)
            if not isinstance(fields, dict):
                raise MalformedRequest(details={"reason": "a frame is a JSON object"})
            await self.hear(fields)
        except (NoobleError, ValueError) as error:
            with translation.override(self.language):
                await self.send(text_data=control("error", named(error).as_dict()))

    async def pong(self, fields: dict[str, Any]) -> bool:
        """Whether the frame was a `ping`, which is answered then."""
        if fields.get("action") != "ping":
            return False
        await self.send(text_data=control("pong"))
        return True

    async def token_refused(self, error: NoobleError) -> NoobleError:
        """What a client gets whose token does not verify: after too many of its address, RateLimited."""
        with asked_by(Origin(AuditSource.SOCKET, ip=self.address)):
            refusal: NoobleError = await self.in_thread(token_refused, error)
        return refusal

    async def in_thread(self, function: Any, *args: Any) -> Any:
        """`function(*args)`, which may ask the database."""
        return await call_in(_threads, function, *args)


_OF_THE_SERVER = {
    "websocket.connect": "websocket_connect",
    "websocket.receive": "websocket_receive",
    "websocket.disconnect": "websocket_disconnect",
}


def picked(scope: dict[str, Any]) -> str | None:
    """Our subprotocol, whenever the client offers it."""
    return PROTOCOL if PROTOCOL in scope["subprotocols"] else None


def _address(scope: dict[str, Any]) -> str | None:
    peer, *_ = scope.get("client") or (None,)
    hops = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return client_address(peer, ",".join(hops))


def _language(headers: dict[bytes, bytes]) -> str:
    """The language that the client asked for at connect."""
    request = HttpRequest()
    request.META["HTTP_ACCEPT_LANGUAGE"] = headers.get(b"accept-language", b"").decode("latin-1")
    return translation.get_language_from_request(request)
