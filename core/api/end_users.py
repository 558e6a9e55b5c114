"""The secrets of end users' tokens over HTTP."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema
from pydantic import BaseModel
from rest_framework.request import Request
from rest_framework.response import Response

from core.actions.bus import execute
from core.actions.end_users import (
    EndUserSecretCreate,
    EndUserSecretCreateAction,
    EndUserSecretResource,
    EndUserSecretRevokeAction,
)
from core.api.views import KeyView
from core.errors import NotFound
from core.selectors import end_user_secret_list, end_user_secret_resource


class EndUserSecretList(BaseModel):
    """All of a tenant's secrets, the newest first, the revoked ones too; there is no further page."""

    items: list[EndUserSecretResource]
    next: None = None


class EndUserSecretsView(KeyView):
    area = "chat"

    @extend_schema(operation_id="end_user_secrets_list", responses={200: EndUserSecretList})
    def get(self, request: Request) -> Response:
        """List the secrets that the tenant signs its end users' tokens with, without their texts."""
        resources = (end_user_secret_resource(secret) for secret in end_user_secret_list())
        return Response({"items": [_body(resource) for resource in resources], "next": None})

    @extend_schema(
        operation_id="end_user_secrets_create",
        request=EndUserSecretCreate,
        responses={201: EndUserSecretResource},
    )
    def post(self, request: Request) -> Response:
        """Make a secret, shown this once. Those that there are go on living until they are revoked."""
        fields = self.fields(request, EndUserSecretCreate)
        return Response(_body(execute(EndUserSecretCreateAction(**fields))), status=201)


class EndUserSecretView(KeyView):
    area = "chat"

    @extend_schema(operation_id="end_user_secrets_revoke", responses={204: None})
    def delete(self, request: Request, secret_id: str) -> Response:
        """Revoke a secret: within a second no token that it has signed is taken any more."""
        if len(secret_id) > 12 or "\0" in secret_id:
            raise NotFound()
        execute(EndUserSecretRevokeAction(secret_id=secret_id))
        return Response(status=204)


def _body(resource: EndUserSecretResource) -> dict[str, object]:
    return resource.model_dump(mode="json", exclude_unset=True)
