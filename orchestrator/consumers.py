"""The session's socket: join, authorize, forward."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import redis
from asgiref.sync import sync_to_async
from autobahn.exception import Disconnected
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.db import OperationalError, close_old_connections
from django.http import HttpRequest
from django.utils import translation

from conversations.selectors import session_seq
from core.actions.base import Action, ActionError, ActionResult
from core.actions.bus import answer
from core.api.errors import named
from core.api.parsers import parse_json
from core.errors import (
    BodyTooLarge,
    Conflict,
    MalformedRequest,
    NoobleError,
    NotFound,
    PermissionRefused,
    RateLimited,
    ServiceUnavailable,
    TenantNotFound,
    ValidationFailed,
)
from core.events import log
from core.events.base import control
from core.events.groups import session_name, tenant_name
from core.ids import is_session_id, is_slug
from core.selectors import tenant_is_known, tenant_limits
from core.tenancy import tenant_scope
from orchestrator.access import Resume, origin_is_sound
from orchestrator.actions import ChatCancelTaskAction, ChatGetStatusAction, ChatSendMessageAction
from orchestrator.errors import TooManyConnections
from orchestrator.snapshots import snapshot
from orchestrator.sockets.census import census
from orchestrator.sockets.forwarding import Forwarding
from orchestrator.sockets.inbox import MAX_FRAME, Frame, Inbox
from orchestrator.sockets.keeper import keeper
from orchestrator.sockets.link import EXTENSION, Link

logger = logging.getLogger(__name__)

PROTOCOL = "nooble.v1"
RESUME_PREFIX = "nooble.resume."

ACTIONS: dict[str, type[Action[Any]]] = {
    action.verb: action for action in (ChatSendMessageAction, ChatGetStatusAction, ChatCancelTaskAction)
}

# Work of sockets that touches the database: bounded, and not the one thread that Channels shares.
_threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="socket")


HANDLERS = {
    "session.event": "session_event",
    "websocket.connect": "websocket_connect",
    "websocket.receive": "websocket_receive",
    "websocket.disconnect": "websocket_disconnect",
}

ADMIT_SECONDS = 3.0  # Valkey that is frozen must not hold up a connect
TOO_MANY = 4429  # connections, or frames

# A service that is away, at connect: come back later.
AWAY = (OperationalError, redis.RedisError, OSError)


class Refused(Exception):
    """A connect that may not be: the close code and the error that explains it."""

    def __init__(self, code: int, error: NoobleError) -> None:
        super().__init__(str(error))
        self.code = code
        self.error = error


class SessionConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """`WS /ws/{tenant_id}/{session_id}`: everything that happens in a session, in order, once."""

    is_accepted = False
    is_counted = False
    has_ended = False
    forwarding: Forwarding | None = None
    groups: list[str]
    language: str

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """However it ends, the socket is not counted and not told any more."""
        self.groups = []
        self.link: Link = scope.get("extensions", {}).get(EXTENSION) or Link()
        self.inbox = Inbox(self.link, self._answer)
        try:
            await super().__call__(scope, receive, send)
        except AWAY as error:
            if self.is_accepted:
                raise
            # Before `connect`: there is not even a channel to be told by.
            await send({"type": "websocket.accept", "subprotocol": _picked(scope)})
            await send({"type": "websocket.send", "text": control("error", named(error).as_dict())})
            await send({"type": "websocket.close", "code": 1013})
        finally:
            self._forget()
            for group in self.groups:
                with suppress(*AWAY):
                    await self.channel_layer.group_discard(group, self.channel_name)
            await self._forget_channel()

    async def _forget_channel(self) -> None:
        """The layer keeps a channel until somebody who waits on it is cancelled; a hint ends the wait."""
        name = getattr(self, "channel_name", None)
        while name is not None and name in self.channel_layer.channels:
            waiting = asyncio.ensure_future(self.channel_receive())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})

    async def send(self, *args: Any, **kwargs: Any) -> None:
        """To a client that has just gone, nothing: its `disconnect` is on the way."""
        with suppress(Disconnected):
            await super().send(*args, **kwargs)

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Channels' own hops through a thread after every message, to close database connections.

        Ours are closed where they were opened: see `_in_thread`.
        """
        await getattr(self, HANDLERS[message["type"]])(message)

    async def connect(self) -> None:
        headers = dict(self.scope["headers"])
        origin = headers.get(b"origin")
        if origin is not None and not origin_is_sound(origin.decode("latin-1")):
            await self.close()  # before the handshake: HTTP 403
            return
        self.language = _language(headers)
        await self.accept(_picked(self.scope))
        self.is_accepted = True
        try:
            await self._join(*await self._admit())
        except Refused as refused:
            await self.refuse(refused.code, refused.error)
        except AWAY as error:
            await self.refuse(1013, named(error))

    async def _admit(self) -> tuple[Resume | None, int | None]:
        """The token and the cursor that the client came with. Raises Refused."""
        route = self.scope["url_route"]["kwargs"]
        self.tenant_id, self.session_id = route["tenant_id"], route["session_id"]
        if not is_slug(self.tenant_id) or not is_session_id(self.session_id):
            raise Refused(4400, ValidationFailed(details={"path": "not a tenant and a session id"}))
        after = _cursor(self.scope["query_string"])
        offered = self.scope["subprotocols"]
        if offered and PROTOCOL not in offered:
            raise Refused(4400, ValidationFailed(details={"subprotocol": f"offer {PROTOCOL}"}))
        tokens = [name.removeprefix(RESUME_PREFIX) for name in offered if name.startswith(RESUME_PREFIX)]
        resume = Resume.verify(tokens[0], self.tenant_id, self.session_id) if tokens else None
        if resume is None and (tokens or after is not None):
            raise Refused(4403, PermissionRefused(details={"subprotocol": f"{RESUME_PREFIX}<resume_token>"}))
        try:
            if not tenant_is_known(self.tenant_id):
                await self._in_thread(tenant_limits, self.tenant_id)
        except TenantNotFound as error:
            raise Refused(4404, error) from None
        return resume, after

    async def _join(self, resume: Resume | None, after: int | None) -> None:
        """Join first, then read the tail: what comes between is in both, and the cursor drops it.

        Raises Refused.
        """
        self.name = session_name(self.tenant_id, self.session_id)
        last_seq = await self._enter()
        if last_seq is None:
            last_seq = await self._in_thread(self._revived)
        resume = resume or Resume(self.tenant_id, self.session_id, from_seq=last_seq)
        data = {"session_id": self.session_id, "last_seq": last_seq, "resume_token": resume.token()}
        await self.send(text_data=control("connection_established", data))
        cursor = last_seq if after is None else max(after, resume.from_seq)
        how_it_stands = partial(snapshot, self.tenant_id, self.session_id, resume.from_seq)
        self.forwarding = Forwarding(self.name, cursor, self.link, self._send_text, how_it_stands)
        if cursor != last_seq:
            self.forwarding.wake()
        keeper().opened(self)

    async def _enter(self) -> int | None:
        """Join the groups and be counted; gives the log's tail. Raises Refused."""
        room = not census().is_full
        last_seq = None
        if room:
            self.groups = [self.name, tenant_name(self.tenant_id)]
            for group in self.groups:
                await self.channel_layer.group_add(group, self.channel_name)
            try:
                room, last_seq = await asyncio.wait_for(census().admit(self.name), ADMIT_SECONDS)
            except TimeoutError:
                raise Refused(1013, ServiceUnavailable()) from None
        if not room:
            limit = settings.MAX_WEBSOCKET_CONNECTIONS
            raise Refused(TOO_MANY, TooManyConnections(details={"limit": limit}))
        self.is_counted = True
        return last_seq

    def _revived(self) -> int:
        """The tail of a log that is not there: a new session's is 0, a lost one goes on far above."""
        with tenant_scope(self.tenant_id):
            floor = session_seq(self.session_id)
        return 0 if floor is None else log.revive(self.name, floor)

    async def refuse(self, code: int, error: NoobleError) -> None:
        with translation.override(self.language):
            await self.end(code, control("error", error.as_dict()))

    async def end(self, code: int, text: str) -> None:
        """Say a last thing and close; what comes in from now on is not heard any more."""
        if self.has_ended:
            return
        self.has_ended = True
        self._forget()
        await self.send(text_data=text)
        with suppress(Disconnected):
            await self.close(code)

    def _forget(self) -> None:
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

    # From the session to the client.

    async def session_event(self, message: dict[str, Any]) -> None:
        """Forward the next event; fill a gap from the log; drop a repeat."""
        if message["tenant_id"] != self.tenant_id or self.forwarding is None or self.has_ended:
            return
        if message["seq"] is not None:
            if message["session_id"] == self.session_id:
                await self.forwarding.hear(message["seq"], message["text"])
        elif not self.link.full:
            # In no log: for those who can hear it now.
            await self._send_text(message["text"])

    async def _send_text(self, text: str) -> None:
        await self.send(text_data=text)

    # From the client to the platform.

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
            await self.refuse(4400, MalformedRequest("Binary frames are not spoken here."))
            return
        if frame.is_too_large:
            await self.refuse(4413, BodyTooLarge(details={"limit": MAX_FRAME}))
            return
        try:
            fields = parse_json(frame.text)
            if not isinstance(fields, dict):
                raise MalformedRequest(details={"reason": "a frame is a JSON object"})
            verb = fields.pop("action", None)
            if verb == "ping":
                await self.send(text_data=control("pong"))
                return
            if not isinstance(verb, str) or verb not in ACTIONS:
                raise ValidationFailed(details={"action": f"one of {', '.join((*ACTIONS, 'ping'))}"})
        except (NoobleError, ValueError) as error:
            with translation.override(self.language):
                await self.send(text_data=control("error", named(error).as_dict()))
            return
        result = await self._in_thread(self._act, ACTIONS[verb], fields)
        await self.send(text_data=control("action_result", result.model_dump(mode="json")))

    def _act(self, shape: type[Action[Any]], fields: dict[str, Any]) -> ActionResult:
        """Run a client's action in its tenant's scope, in the client's language."""
        with tenant_scope(self.tenant_id), translation.override(self.language):
            try:
                action = self._build(shape, fields)
            except Exception as error:  # noqa: BLE001 - named() logs what nobody expected
                return ActionResult(
                    action_id=str(fields.get("action_id", ""))[:64],
                    success=False,
                    error=ActionError(**named(error).as_dict()),
                    execution_time=0.0,
                )
            result, _error = answer(action)
        for name, scheme in (("websocket_url", "ws"), ("events_url", "http")):
            if result.result and name in result.result:
                result.result[name] = self._address(scheme, result.result[name])
        return result

    def _build(self, shape: type[Action[Any]], fields: dict[str, Any]) -> Action[Any]:
        """The client's action, bound to its socket: its tenant, and for messages its session."""
        if fields.get("tenant_id", self.tenant_id) != self.tenant_id:
            raise TenantNotFound()
        if shape is ChatSendMessageAction:
            if fields.get("session_id", self.session_id) != self.session_id:
                raise Conflict(details={"session_id": "a socket speaks for its own session"})
            fields = fields | {"session_id": self.session_id}
        return shape(**fields)

    def _address(self, scheme: str, path: str) -> str:
        headers = dict(self.scope["headers"])
        proxied = settings.SECURE_PROXY_SSL_HEADER is not None
        forwarded = proxied and headers.get(b"x-forwarded-proto") == b"https"
        secure = forwarded or self.scope.get("scheme") == "wss"
        host = headers.get(b"host", b"").decode("latin-1")
        return f"{scheme}{'s' if secure else ''}://{host}{path}"

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        def call() -> Any:
            try:
                return function(*args)
            finally:
                close_old_connections()

        return await sync_to_async(call, thread_sensitive=False, executor=_threads)()


class UnknownConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Any other address: refused with a reason instead of a broken handshake."""

    async def connect(self) -> None:
        await self.accept(_picked(self.scope))
        await self.send(text_data=control("error", NotFound().as_dict()))
        await self.close(4404)


def _picked(scope: dict[str, Any]) -> str | None:
    """Our subprotocol, whenever the client offers it."""
    return PROTOCOL if PROTOCOL in scope["subprotocols"] else None


def _language(headers: dict[bytes, bytes]) -> str:
    """The language that the client asked for at connect."""
    request = HttpRequest()
    request.META["HTTP_ACCEPT_LANGUAGE"] = headers.get(b"accept-language", b"").decode("latin-1")
    return translation.get_language_from_request(request)


def _cursor(query_string: bytes) -> int | None:
    """`after` of the query. Raises Refused."""
    values = parse_qs(query_string.decode("latin-1"), keep_blank_values=True).get("after")
    if values is None:
        return None
    if not values[0].isascii() or not values[0].isdecimal() or len(values[0]) > 15:
        raise Refused(4400, ValidationFailed(details={"after": "a seq: a whole number from 0"}))
    return int(values[0])
