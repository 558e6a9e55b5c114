"""Who may chat with an agent, and hear its sessions.

Doors (HTTP, sockets) say what somebody shows (`Visitor`); the rules ask for it where the work is done.
What came through no door shows nothing, and gets what everybody gets.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Q
from rest_framework.request import Request

from agents.selectors import AgentAccess, AgentDoor, LiveAgent, agent_doors
from core.errors import AuthenticationRequired, NoobleError, PermissionRefused, Suspended, TenantNotFound
from core.models import ApiKey, EndUserSecret, Tenant
from core.origins import origin_is_sound
from core.ratelimits import token_refused
from core.selectors import tenant_changed, tenant_limits
from core.tenancy import across_tenants, tenant_scope
from orchestrator.access import Resume
from orchestrator.actions import ChatSendMessageAction
from orchestrator.authentication import EndUserToken
from orchestrator.end_users import EndUser
from orchestrator.errors import EndUserTokenRefused, OriginRefused, ProofRequired
from orchestrator.selectors import SessionStanding, session_standings

LISTEN, SPEAK = "chat:read", "chat:write"  # what a key needs
RESUME_HEADER = "Nooble-Resume"

_looks_like_a_key = re.compile(r"nbk_")
_TOKEN = "Authorization: Bearer <end-user token>"
_KEY = "Authorization: Bearer <tenant API key>"


@dataclass(frozen=True, slots=True)
class Visitor:
    """What somebody shows: a browser's origin, a key, an end user's token, a session's resume token.

    Keys and end users are verified. A resume token is looked at where it is known for which session.
    """

    origin: str | None = None
    key: ApiKey | None = None
    user: EndUser | None = None
    resume: str | None = None

    @classmethod
    def of_request(cls, request: Request, tenant_id: str) -> Visitor:
        """Who asks something of that tenant over HTTP. Raises EndUserTokenRefused, OriginRefused."""
        origin, shown = request.META.get("HTTP_ORIGIN"), request.auth
        if origin is not None and not origin_is_sound(origin):
            raise OriginRefused(details={"origin": "no origin of a web page"})
        return cls(
            origin=origin,
            key=shown if isinstance(shown, ApiKey) else None,
            user=_end_user(shown.text, tenant_id) if isinstance(shown, EndUserToken) else None,
            resume=request.META.get("HTTP_NOOBLE_RESUME"),
        )

    @classmethod
    def of_socket(cls, tenant_id: str, origin: str | None, bearer: str | None, resume: str | None) -> Visitor:
        """Who opens a socket of that tenant.

        Raises AuthenticationRequired, EndUserTokenRefused, and TenantNotFound for another tenant's key.
        """
        visitor = cls(origin=origin, resume=resume)
        if bearer is None:
            return visitor
        if not _looks_like_a_key.match(bearer):
            return replace(visitor, user=_end_user(bearer, tenant_id))
        key = ApiKey.verify(bearer)
        if key is None:
            raise token_refused(AuthenticationRequired())
        if key.tenant_id != tenant_id:
            raise TenantNotFound()
        return replace(visitor, key=key)

    def check(self) -> None:
        """For one who has shown it a while ago. Raises AuthenticationRequired, EndUserTokenRefused."""
        if self.user is not None:
            self.user.check()
        if self.key is not None:
            with tenant_scope(self.key.tenant_id):
                if not ApiKey.objects.filter(pk=self.key.pk, revoked_at=None).exists():
                    raise AuthenticationRequired()

    def has_key(self, tenant_id: str, right: str) -> bool:
        """Whether it is the tenant itself. Raises PermissionRefused for its key without the right."""
        if self.key is None or self.key.tenant_id != tenant_id:
            return False
        if right not in self.key.scopes:
            raise PermissionRefused(details={"scope": right})
        return True


def _end_user(token: str, tenant_id: str) -> EndUser:
    """Raises EndUserTokenRefused, RateLimited."""
    try:
        return EndUser.of(token, tenant_id)
    except EndUserTokenRefused as error:
        raise token_refused(error) from None


NOBODY = Visitor()
_visitor: ContextVar[Visitor] = ContextVar("visitor", default=NOBODY)


@contextmanager
def visited_by(visitor: Visitor) -> Iterator[None]:
    """Everything inside is asked for by them."""
    token = _visitor.set(visitor)
    try:
        yield
    finally:
        _visitor.reset(token)


def current_visitor() -> Visitor:
    return _visitor.get()


# --- The rules -------------------------------------------------------------------------------------


def check_origin(access: AgentAccess, visitor: Visitor) -> None:
    """Whether their page may use the agent; what is no browser has none. Raises OriginRefused."""
    if access.origins and visitor.origin is not None and visitor.origin not in access.origins:
        raise OriginRefused(details={"origin": visitor.origin})


def check_agent(
    agent_id: uuid.UUID, tenant_id: str, access: AgentAccess, visitor: Visitor, right: str
) -> None:
    """Whether they may have to do with the agent. Raises OriginRefused, ProofRequired, PermissionRefused."""
    check_origin(access, visitor)
    user = visitor.user if visitor.user is not None and visitor.user.tenant_id == tenant_id else None
    if user is not None and user.agents is not None and str(agent_id) not in user.agents:
        raise PermissionRefused(details={"end_user_token": "aud"})
    if access.kind == "public" or visitor.has_key(tenant_id, right):
        return
    if access.kind == "key" or user is None:
        needed = _KEY if access.kind == "key" else _TOKEN
        raise ProofRequired(details={"access": access.kind, "header": needed})


def check_session(
    access: AgentAccess, tenant_id: str, standing: SessionStanding, visitor: Visitor, right: str
) -> None:
    """Whether they may join or speak in a session that is there.

    Raises ProofRequired, PermissionRefused.
    """
    if access.kind == "signed" and not visitor.has_key(tenant_id, right):
        assert visitor.user is not None, "the agent was asked first"
        if visitor.user.user_id != standing.user_id:
            raise PermissionRefused(details={"session_id": "another end user's session"})
    if access.require_resume and standing.has_messages:
        resume = Resume.verify(visitor.resume or "", tenant_id, standing.key)
        if resume is None and not visitor.has_key(tenant_id, right):
            raise ProofRequired(details={"header": f"{RESUME_HEADER}: <resume_token>"})


def _check_claim(visitor: Visitor, session_id: str | None) -> None:
    """A token that names a session is for no other one. Raises PermissionRefused."""
    if visitor.user is not None and visitor.user.session_id not in (None, session_id):
        raise PermissionRefused(details={"end_user_token": "session_id"})


def admit(agent: LiveAgent, action: ChatSendMessageAction) -> ChatSendMessageAction:
    """The message as its sender may say it: an end user's token says who that is, whatever the body says.

    No query for what is open to all. Raises OriginRefused, ProofRequired, PermissionRefused.
    """
    visitor = current_visitor()
    if agent.access.is_open and visitor.user is None:
        return action
    if not agent.access.is_open and not tenant_limits(agent.tenant_id).guarded:
        tenant_changed(agent.tenant_id)  # we know better: the sockets of this process are to ask
    check_agent(agent.agent_id, agent.tenant_id, agent.access, visitor, SPEAK)
    if visitor.user is None:
        return action
    _check_claim(visitor, action.session_id)
    user_id = visitor.user.user_id
    if action.user_info.user_id not in ("", user_id):
        raise PermissionRefused(details={"user_info.user_id": "the token names another one"})
    user_info = action.user_info.model_copy(update={"user_id": user_id})
    return action.model_copy(update={"user_info": user_info})


def admit_to_session(agent: LiveAgent, session_id: str) -> None:
    """Whether who asks may speak in a session that is there; call it once nobody else can in between.

    No query for what is open to all. Raises ProofRequired, PermissionRefused.
    """
    if agent.access.is_open:
        return
    standing = session_standings([session_id]).get(session_id)
    if standing is not None:
        check_session(agent.access, agent.tenant_id, standing, current_visitor(), SPEAK)


# --- Listening -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """Who wants to hear a session, or does already."""

    tenant_id: str
    session_id: str
    visitor: Visitor

    def check_origin(self) -> None:
        """Whether its page may hear the session, if there is one. Raises TenantNotFound, OriginRefused."""
        if tenant_limits(self.tenant_id).guarded:
            with tenant_scope(self.tenant_id):
                found = self._found()
            if found is not None:
                check_origin(found[1].access, self.visitor)

    def check_join(self) -> bool:
        """Whether it is settled that it may listen: False while the session does not exist. For threads.

        Before it does, everybody may wait for it; `verdicts` asks again. Raises TenantNotFound,
        Suspended, OriginRefused, ProofRequired, PermissionRefused.
        """
        limits = tenant_limits(self.tenant_id)
        if limits.suspended:
            raise Suspended()
        _check_claim(self.visitor, self.session_id)
        if not limits.guarded:
            return True
        with tenant_scope(self.tenant_id):
            found = self._found()
        if found is None:
            return False
        standing, door = found
        self._check(standing, door, door.access)
        return True

    def check_stay(self, standing: SessionStanding, door: AgentDoor) -> None:
        """Whether one that has joined may go on. Raises Suspended, OriginRefused, ProofRequired, …"""
        self._check(standing, door, replace(door.access, require_resume=False))

    def _found(self) -> tuple[SessionStanding, AgentDoor] | None:
        standing = session_standings([self.session_id]).get(self.session_id)
        return (standing, agent_doors([standing.agent_id])[standing.agent_id]) if standing else None

    def _check(self, standing: SessionStanding, door: AgentDoor, access: AgentAccess) -> None:
        if door.suspended:
            raise Suspended()
        check_agent(standing.agent_id, self.tenant_id, access, self.visitor, LISTEN)
        check_session(access, self.tenant_id, standing, self.visitor, LISTEN)


def verdicts(listeners: Iterable[Listener]) -> dict[Listener, NoobleError | None]:
    """Whether they may listen on, as things are at this moment: None, or why not. For threads.

    Absent are those of whom nothing is to be said: their sessions do not exist yet, or all of the
    tenant's agents are open to all. One query for all, and a few for each tenant where some are not.
    """
    of_tenants: dict[str, list[Listener]] = {}
    for listener in listeners:
        of_tenants.setdefault(listener.tenant_id, []).append(listener)
    is_shut: Any = Q(suspended_at__isnull=False)
    with across_tenants():
        tenants = Tenant.objects.filter(Q(guarded=True) | is_shut, pk__in=list(of_tenants))
        looked_at = list(tenants.values_list("pk", is_shut))
    found: dict[Listener, NoobleError | None] = {}
    for tenant_id, suspended in looked_at:
        if suspended:
            found |= {listener: Suspended() for listener in of_tenants[tenant_id]}
            continue
        with tenant_scope(tenant_id):
            found |= _verdicts(of_tenants[tenant_id])
    return found


def _verdicts(listeners: list[Listener]) -> dict[Listener, NoobleError | None]:
    """Of those of the current tenant."""
    standings = session_standings({listener.session_id for listener in listeners})
    doors = agent_doors({standing.agent_id for standing in standings.values()})
    is_revoked = _revoked(listener.visitor for listener in listeners)
    found: dict[Listener, NoobleError | None] = {}
    for listener in listeners:
        standing = standings.get(listener.session_id)
        if standing is None:
            continue
        try:
            if is_revoked(listener.visitor):
                raise AuthenticationRequired()
            listener.check_stay(standing, doors[standing.agent_id])
        except NoobleError as error:
            found[listener] = error
        else:
            found[listener] = None
    return found


def _revoked(visitors: Iterable[Visitor]) -> Callable[[Visitor], bool]:
    """Tells of each whether its key, or the secret of its token, is revoked. Of the current tenant."""
    shown = list(visitors)
    secrets = {visitor.user.secret_id for visitor in shown if visitor.user is not None}
    keys = {visitor.key.pk for visitor in shown if visitor.key is not None}
    if secrets:
        secrets -= set(
            EndUserSecret.objects.filter(prefix__in=secrets, revoked_at=None).values_list("prefix", flat=True)
        )
    if keys:
        keys -= set(ApiKey.objects.filter(pk__in=keys, revoked_at=None).values_list("pk", flat=True))

    def is_revoked(visitor: Visitor) -> bool:
        by_secret = visitor.user is not None and visitor.user.secret_id in secrets
        return by_secret or (visitor.key is not None and visitor.key.pk in keys)

    return is_revoked
