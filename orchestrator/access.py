"""Who may listen to what: resume tokens, origins, onlookers of a tenant, services."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass
from importlib import import_module
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user
from django.core import signing
from django.http import HttpRequest, parse_cookie

from core.errors import PermissionRefused, TenantNotFound
from core.events.base import SERVICES, Service
from core.models import ApiKey, Tenant
from core.ratelimits import token_refused
from core.selectors import tenant_limits

TOKEN_SECONDS = 24 * 60 * 60
_signer = signing.Signer(sep="~", salt="nooble.resume")


@dataclass(frozen=True, slots=True)
class Resume:
    """What a resume token opens: the events and messages of one session after `from_seq`."""

    tenant_id: str
    session_id: str
    from_seq: int

    def token(self) -> str:
        """The signed token, good for a day; its characters are `[A-Za-z0-9._~-]`."""
        expiry = int(time.time()) + TOKEN_SECONDS
        return _signer.sign(f"{self.tenant_id}.{self.session_id}.{self.from_seq}.{expiry}")

    @classmethod
    def verify(cls, token: str, tenant_id: str | None, session_id: str) -> Resume | None:
        """The living token of this session, or None; any tenant's when `tenant_id` is None."""
        try:
            tenant, session, from_seq, expiry = _signer.unsign(token).split(".")
        except (signing.BadSignature, ValueError):
            return None
        if session != session_id or tenant_id not in (None, tenant) or int(expiry) < time.time():
            return None
        return cls(tenant, session, int(from_seq))


def is_same_origin(origin: str | None, host: str) -> bool:
    """Whether a page of this very host asks: a cookie alone says nothing of who sent it.

    What is no browser sends no Origin, and no cookie by itself either.
    """
    return origin is None or urlsplit(origin).netloc == host


# What an onlooker needs: the right of a key, the permission of a person.
LOOKS = "agents:read"
MAY_LOOK = "agents.view_agent"


@dataclass(frozen=True, slots=True)
class Onlooker:
    """Who wants to hear what happens to a tenant's things: with its key, or as a person of the console."""

    tenant_id: str
    key: str | None
    cookies: str

    def check(self) -> None:
        """For threads. Raises PermissionRefused, and TenantNotFound for what is not the caller's."""
        if self.key is not None:
            self._check_key(self.key)
        elif not self._is_person():
            raise PermissionRefused(details={"subprotocol": "nooble.bearer.<tenant key>"})
        else:
            tenant_limits(self.tenant_id)

    def _check_key(self, text: str) -> None:
        key = ApiKey.verify(text)
        if key is None:
            raise token_refused(PermissionRefused(details={"subprotocol": "nooble.bearer.<tenant key>"}))
        if key.tenant_id != self.tenant_id:
            raise TenantNotFound()
        if LOOKS not in key.scopes:
            raise PermissionRefused(details={"scope": LOOKS})

    def _is_person(self) -> bool:
        cookie = parse_cookie(self.cookies).get(settings.SESSION_COOKIE_NAME)
        if not cookie:
            return False
        request = HttpRequest()
        request.session = import_module(settings.SESSION_ENGINE).SessionStore(cookie)
        user = get_user(request)
        is_person = user.is_active and getattr(user, "is_staff", False)
        return is_person and user.has_perm(MAY_LOOK, Tenant(pk=self.tenant_id))


def service_named(token: object, name: object) -> Service | None:
    """The service that says who it is by the platform's token; without one set, there is none."""
    expected = settings.SERVICE_TOKEN
    if not expected or not isinstance(token, str) or not isinstance(name, str):
        return None
    if not hmac.compare_digest(token.encode(), expected.encode()):
        return None
    return SERVICES.get(name)
