"""End users' tokens as bearers, beside tenants' keys."""

from __future__ import annotations

import re
from dataclasses import dataclass

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from core.api.authentication import TenantKeyAuthentication

_form = re.compile(r"[\w-]+\.[\w-]*\.[\w-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class EndUserToken:
    """A token as it came: whether it is valid depends on the tenant, which the request has yet to name."""

    text: str


class EndUserTokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer <end-user token>` puts the token into `request.auth`, unverified.

    What does not look like one is for the classes that follow.
    """

    def authenticate(self, request: Request) -> tuple[None, EndUserToken] | None:
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer" or not _form.fullmatch(token.strip()):
            return None
        return None, EndUserToken(token.strip())

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class EndUserTokenScheme(OpenApiAuthenticationExtension):
    """How the schema tells of the token."""

    target_class = EndUserTokenAuthentication
    name = "endUserToken"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "A token of an end user's, signed with a secret of the tenant's",
        }


# Of the front door's views: the first that knows the bearer has it.
KEY_OR_TOKEN = [EndUserTokenAuthentication, TenantKeyAuthentication]
