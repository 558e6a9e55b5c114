"""The front door's sockets: join, authorize, forward."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.utils import translation

from conversations.errors import SessionNotFound
from conversations.selectors import session_seq
from core import tracing
from core.actions.base import Action, ActionError, ActionResult
from core.actions.bus import answer
from core.api.errors import named
from core.audit import Origin, asked_by
from core.away import SERVICE_AWAY
from core.errors import (
    AuthenticationRequired,
    Conflict,
    NoobleError,
    NotFound,
    PermissionRefused,
    RateLimited,
    TenantNotFound,
    ValidationFailed,
)
from core.events import log
from core.events.base import SERVICES, Service, control
from core.events.groups import session_name, tenant_name, updates_name
from core.ids import is_session_id, is_slug
from core.models.audit import AuditSource
from core.ratelimits import count_connect, count_request, count_strangers_connect
from core.selectors import tenant_limits, tenant_peek
from core.tenancy import tenant_scope
from orchestrator.access import LOOKS, Onlooker, Resume, is_same_origin, service_named
from orchestrator.actions import (
    ChatCancelTaskAction,
    ChatGetStatusAction,
    ChatSendMessageAction,
    ServiceEventBody,
    ServiceTellAction,
)
from orchestrator.admission import Listener, Visitor, verdicts, visited_by
from orchestrator.errors import OriginRefused, ServiceRefused
from orchestrator.snapshots import snapshot
from orchestrator.sockets.forwarding import Forwarding
from orchestrator.sockets.inbox import BURST, RATE
from orchestrator.sockets.keeper import keeper
from orchestrator.sockets.socket import (
    MALFORMED,
    NOT_ALLOWED,
    TRY_AGAIN,
    UNKNOWN,
    ClientSocket,
    Refused,
    picked,
)

CHECK_SECONDS = 10.0  # so long a right is believed that was seen once
HANDSHAKE_SECONDS = 10.0  # for a service to say who it is

RESUME_PREFIX = "nooble.resume."
BEARER_PREFIX = "nooble.bearer."

ACTIONS: dict[str, type[Action[Any]]] = {
    action.verb: action for action in (ChatSendMessageAction, ChatGetStatusAction, ChatCancelTaskAction)
}


class SessionConsumer(ClientSocket):
    """`WS /ws/{tenant_id}/{session_id}`: everything that happens in a session, in order, once."""

    callers = "anybody, where the agent asks for nothing; tenant key, end-user token, resume token"
    messages = {
        "session.event": "session_event",
        "session.deleted": "session_deleted",
        "session.access": "session_access",
    }

    listener: Listener
    is_settled = True  # that we may listen: it is not while a session has yet to become somebody's

    async def welcomes(self, origin: str) -> bool:
        """Not where the agent of the session, if there is one yet, allows only others."""
        route = self.scope["url_route"]["kwargs"]
        tenant_id, session_id = route["tenant_id"], route["session_id"]
        limits = tenant_peek(tenant_id)
        if not is_slug(tenant_id) or not is_session_id(session_id) or (limits and not limits.guarded):
            return True
        try:
            await self.in_thread(Listener(tenant_id, session_id, Visitor(origin=origin)).check_origin)
        except OriginRefused:
            return False
        except (TenantNotFound, *SERVICE_AWAY):
            pass  # told behind the handshake, where all of it is asked for again
        return True

    async def open(self) -> None:
        await self._join(*await self._admit())

    async def _admit(self) -> tuple[Resume | None, int | None]:
        """The token and the cursor that the client came with. Raises Refused."""
        route = self.scope["url_route"]["kwargs"]
        self.tenant_id, self.session_id = route["tenant_id"], route["session_id"]
        if not is_slug(self.tenant_id) or not is_session_id(self.session_id):
            raise Refused(MALFORMED, ValidationFailed(details={"path": "not a tenant and a session id"}))
        after = _cursor(self.scope["query_string"])
        token = self.offered(RESUME_PREFIX)
        resume = Resume.verify(token, self.tenant_id, self.session_id) if token is not None else None
        if resume is None and (token is not None or after is not None):
            error: NoobleError = PermissionRefused(details={"subprotocol": f"{RESUME_PREFIX}<resume_token>"})
            if token is not None:
                error = await self.token_refused(error)
            raise Refused(NOT_ALLOWED, error)
        bearer = self.offered(BEARER_PREFIX)
        self.listener = Listener(self.tenant_id, self.session_id, Visitor(origin=self.origin, resume=token))
        limits = tenant_peek(self.tenant_id)
        try:
            if (
                limits is None
                or limits.rates is not None
                or limits.guarded
                or limits.suspended
                or bearer is not None
            ):
                await self.in_thread(self._prove, bearer, token)
        except TenantNotFound as error:
            raise Refused(UNKNOWN, error) from None
        except (PermissionRefused, AuthenticationRequired, RateLimited) as error:
            raise Refused(NOT_ALLOWED, error) from None
        return resume, after

    def _prove(self, bearer: str | None, token: str | None) -> None:
        """Raises TenantNotFound, RateLimited, PermissionRefused, AuthenticationRequired."""
        tenant_limits(self.tenant_id)
        count_connect(self.tenant_id)
        visitor = Visitor.of_socket(self.tenant_id, self.origin, bearer, token)
        self.listener = Listener(self.tenant_id, self.session_id, visitor)
        self.is_settled = self.listener.check_join()

    async def _join(self, resume: Resume | None, after: int | None) -> None:
        """Join first, then read the tail: what comes between is in both, and the cursor drops it.

        Raises Refused.
        """
        self.name = session_name(self.tenant_id, self.session_id)
        last_seq = await self.enter([self.name, tenant_name(self.tenant_id)], self.name)
        if not self.is_settled:
            await self._ask()  # once more: it may have become somebody's before we could hear of it
        if last_seq is None:
            last_seq = await self.in_thread(self._revived)
        resume = resume or Resume(self.tenant_id, self.session_id, from_seq=last_seq)
        data = {"session_id": self.session_id, "last_seq": last_seq, "resume_token": resume.token()}
        await self.send(text_data=control("connection_established", data))
        cursor = last_seq if after is None else max(after, resume.from_seq)
        how_it_stands = partial(snapshot, self.tenant_id, self.session_id, resume.from_seq)
        self.forwarding = Forwarding(self.name, cursor, self.link, self._send_text, how_it_stands)
        if cursor != last_seq:
            self.forwarding.wake()
        keeper().opened(self)

    def _revived(self) -> int:
        """The tail of a log that is not there: a new session's is 0, a lost one goes on far above."""
        with tenant_scope(self.tenant_id):
            floor = session_seq(self.session_id)
        return 0 if floor is None else log.revive(self.name, floor)

    async def session_event(self, message: dict[str, Any]) -> None:
        """Forward the next event; fill a gap from the log; drop a repeat."""
        if message["tenant_id"] != self.tenant_id or self.forwarding is None or self.has_ended:
            return
        if message["seq"] is not None:
            if message["session_id"] == self.session_id:
                await self.forwarding.hear(message["seq"], message["text"])
        elif not self.link.full:
            # In no log: for those who can hear it now.
            await self.send(text_data=message["text"])

    async def session_deleted(self, message: dict[str, Any]) -> None:
        if (message["tenant_id"], message["session_id"]) == (self.tenant_id, self.session_id):
            await self.refuse(UNKNOWN, SessionNotFound())

    async def session_access(self, message: dict[str, Any]) -> None:
        """Who may listen has changed: for the tenant, where one question does for all; or for our session."""
        if message["tenant_id"] != self.tenant_id or self.has_ended:
            return
        if message["session_id"] is None:
            keeper().ask_for_rights()
        elif message["session_id"] == self.session_id:
            await self._may_stay()

    async def _ask(self) -> None:
        """Whether we may listen. Raises Refused."""
        listener = self.listener
        found = await self.in_thread(verdicts, [listener])
        error = found.get(listener)
        if error is not None:
            raise Refused(NOT_ALLOWED, error)
        self.is_settled = self.is_settled or listener in found

    async def _may_stay(self) -> bool:
        try:
            await self._ask()
        except Refused as refused:
            await self.refuse(refused.code, refused.error)
        except SERVICE_AWAY as error:
            await self.refuse(TRY_AGAIN, named(error))
        return not self.has_ended

    async def _send_text(self, text: str) -> None:
        """What is said in the session: to nobody of whom it is not settled that they may hear it."""
        if self.is_settled or await self._may_stay():
            await self.send(text_data=text)

    async def hear(self, fields: dict[str, Any]) -> None:
        if await self.pong(fields):
            return
        verb = fields.pop("action", None)
        if not isinstance(verb, str) or verb not in ACTIONS:
            raise ValidationFailed(details={"action": f"one of {', '.join((*ACTIONS, 'ping'))}"})
        result = await self.in_thread(self._act, ACTIONS[verb], fields)
        await self.send(text_data=control("action_result", result.model_dump(mode="json")))

    def _act(self, shape: type[Action[Any]], fields: dict[str, Any]) -> ActionResult:
        """Run a client's action in its tenant's scope, in the client's language."""
        request_id = str(fields.get("action_id", ""))[:64]
        origin = Origin(AuditSource.SOCKET, request_id=request_id, ip=self.address)
        visitor = self.listener.visitor
        with (
            tenant_scope(self.tenant_id),
            tracing.context(request_id=request_id),
            asked_by(origin),
            visited_by(visitor),
            translation.override(self.language),
        ):
            try:
                count_request(self.tenant_id)
                action = self._build(shape, fields)
            except Exception as error:  # noqa: BLE001 - named() logs what nobody expected
                return ActionResult(
                    action_id=request_id,
                    success=False,
                    error=ActionError(**named(error).as_dict()),
                    execution_time=0.0,
                )
            result, _error = answer(action)
        if result.result and "resume_token" in result.result:
            # Who has begun a session may go on with it.
            visitor = replace(visitor, resume=result.result["resume_token"])
            self.listener = replace(self.listener, visitor=visitor)
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
            self.listener.visitor.check()
        return shape(**fields)

    def _address(self, scheme: str, path: str) -> str:
        headers = dict(self.scope["headers"])
        proxied = settings.SECURE_PROXY_SSL_HEADER is not None
        forwarded = proxied and headers.get(b"x-forwarded-proto") == b"https"
        secure = forwarded or self.scope.get("scheme") == "wss"
        host = headers.get(b"host", b"").decode("latin-1")
        return f"{scheme}{'s' if secure else ''}://{host}{path}"


class TenantUpdatesConsumer(ClientSocket):
    """`WS /ws/tenants/{tenant_id}/updates`: what happens to a tenant's things, as it happens."""

    callers = f"tenant key, `{LOOKS}`; people with an account"
    messages = {"tenant.update": "tenant_update"}

    async def open(self) -> None:
        self.tenant_id: str = self.scope["url_route"]["kwargs"]["tenant_id"]
        if not is_slug(self.tenant_id):
            raise Refused(MALFORMED, ValidationFailed(details={"path": "not a tenant"}))
        headers = dict(self.scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        cookies = headers.get(b"cookie", b"").decode("latin-1") if is_same_origin(self.origin, host) else ""
        self.onlooker = Onlooker(self.tenant_id, self.offered(BEARER_PREFIX), cookies)
        await self.in_thread(count_connect, self.tenant_id)
        await self._check()
        await self.enter([updates_name(self.tenant_id)])
        data = {"channel": f"tenant:{self.tenant_id}"}
        await self.send(text_data=control("connection_established", data))
        keeper().opened(self)

    async def _check(self) -> None:
        """Raises Refused."""
        try:
            await self.in_thread(self.onlooker.check)
        except TenantNotFound as error:
            raise Refused(UNKNOWN, error) from None
        except (PermissionRefused, RateLimited) as error:
            raise Refused(NOT_ALLOWED, error) from None
        self.checked_at = time.monotonic()

    async def tenant_update(self, message: dict[str, Any]) -> None:
        """Forward it, if who listens still may: a key can be revoked, and a person can leave."""
        if message["tenant_id"] != self.tenant_id or self.has_ended:
            return
        try:
            if time.monotonic() - self.checked_at > CHECK_SECONDS:
                await self._check()
        except Refused as refused:
            await self.refuse(refused.code, refused.error)
            return
        except SERVICE_AWAY as error:
            await self.refuse(TRY_AGAIN, named(error))
            return
        await self.link.drained()
        await self.send(text_data=message["text"])

    async def hear(self, fields: dict[str, Any]) -> None:
        if not await self.pong(fields):
            raise ValidationFailed(details={"action": "ping"})


class TaskUpdatesConsumer(ClientSocket):
    """`WS /ws/task_updates`: services of the platform tell what their work comes to.

    The first frame is `{service_token, service_name}`, answered by `{"status": "authenticated"}`. Each
    frame after it is an event in the envelope. One that has an `event_id` is answered by the
    `action_result`; one that has none only where it is refused, by an `error`.
    """

    callers = "service token"
    burst, rate = 10 * BURST, 10 * RATE
    service: Service | None = None
    _deadline: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        await self.in_thread(count_strangers_connect)
        await self.enter([])
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._late = asyncio.create_task(self.refuse(NOT_ALLOWED, ServiceRefused()))

    def forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().forget()

    async def hear(self, fields: dict[str, Any]) -> None:
        if self.service is None:
            await self._shake_hands(fields)
        elif not await self.pong(fields):
            await self._take(ServiceEventBody(**fields))

    async def _shake_hands(self, fields: dict[str, Any]) -> None:
        service = service_named(fields.get("service_token"), fields.get("service_name"))
        if service is None:
            error: NoobleError = ServiceRefused()
            if fields.get("service_token"):
                error = await self.token_refused(error)  # what is not shown is not counted
            await self.refuse(NOT_ALLOWED, error)
            return
        self.service = service
        assert self._deadline is not None
        self._deadline.cancel()
        await self.send(text_data='{"status":"authenticated"}')
        keeper().opened(self)

    async def _take(self, event: ServiceEventBody) -> None:
        if SERVICES[event.service] != self.service:
            raise ValidationFailed(details={"service": "a service speaks for itself"})
        result = await self.in_thread(self._act, event)
        if event.event_id is not None:
            await self.send(text_data=control("action_result", result.model_dump(mode="json")))
        elif result.error is not None:
            await self.send(text_data=control("error", result.error.model_dump(mode="json")))

    def _act(self, event: ServiceEventBody) -> ActionResult:
        origin = Origin(AuditSource.SOCKET, lambda: f"service:{self.service}", ip=self.address)
        fields = event.model_dump(exclude={"tenant_id", "seq"}, exclude_none=True)
        action_id = str(event.event_id) if event.event_id is not None else uuid.uuid4().hex
        with (
            tenant_scope(event.tenant_id),
            tracing.context(request_id=action_id),
            asked_by(origin),
            translation.override(self.language),
        ):
            result, _error = answer(ServiceTellAction(**fields, action_id=action_id))
        return result


class UnknownConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Any other address: refused with a reason instead of a broken handshake."""

    async def connect(self) -> None:
        await self.accept(picked(self.scope))
        await self.send(text_data=control("error", NotFound().as_dict()))
        await self.close(UNKNOWN)


def _cursor(query_string: bytes) -> int | None:
    """`after` of the query. Raises Refused."""
    values = parse_qs(query_string.decode("latin-1"), keep_blank_values=True).get("after")
    if values is None:
        return None
    if not values[0].isascii() or not values[0].isdecimal() or len(values[0]) > 15:
        raise Refused(MALFORMED, ValidationFailed(details={"after": "a seq: a whole number from 0"}))
    return int(values[0])
