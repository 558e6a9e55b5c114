"""Tenant API keys, and the platform's own token, as bearer tokens."""

from __future__ import annotations

import hmac

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from core.errors import AuthenticationRequired
from core.models import ApiKey
from core.ratelimits import token_refused


class TenantKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer <tenant API key>` puts the key into `request.auth`.

    A key that does not verify is refused even where none is needed.
    """

    def authenticate(self, request: Request) -> tuple[None, ApiKey] | None:
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if not scheme:
            return None
        key = ApiKey.verify(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise token_refused(AuthenticationRequired())
        return None, key

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class TenantKeyScheme(OpenApiAuthenticationExtension):
    """How the schema tells of the key."""

    target_class = TenantKeyAuthentication
    name = "tenantKey"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "A tenant API key"}


SERVICE = "service"  # `request.auth` of who shows the platform's own token


class ServiceTokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer <SERVICE_TOKEN>`; another token is for the classes that follow."""

    def authenticate(self, request: Request) -> tuple[None, str] | None:
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        expected = settings.SERVICE_TOKEN
        if not expected or scheme.lower() != "bearer":
            return None
        return (None, SERVICE) if hmac.compare_digest(token.strip().encode(), expected.encode()) else None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class ServiceTokenScheme(OpenApiAuthenticationExtension):
    """How the schema tells of the token."""

    target_class = ServiceTokenAuthentication
    name = "serviceToken"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "The platform's service token"}
