"""Views that turn HTTP into actions and back."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from typing import Any, ClassVar

from django.http import HttpResponseBase
from pydantic import BaseModel
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.actions.base import Action
from core.actions.bus import answer
from core.api.errors import headers_of
from core.api.parsers import MAX_BODY
from core.audit import asked_by, with_actor
from core.errors import (
    AuthenticationRequired,
    BodyTooLarge,
    MalformedRequest,
    PermissionRefused,
    ValidationFailed,
)
from core.models import ApiKey
from core.ratelimits import count_request, told_to
from core.tenancy import current_tenant_id, tenant_scope


class ApiView(APIView):
    """Every JSON endpoint: refuses what is too large before parsing it, names every error."""

    max_body: ClassVar[int] = MAX_BODY  # bytes

    def handle_exception(self, exc: Exception) -> Response:
        return super().handle_exception(told_to(exc))

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        length = request.META.get("CONTENT_LENGTH") or "0"
        if not length.isdigit() or int(length) > self.max_body:
            raise BodyTooLarge(details={"limit": self.max_body})
        super().initial(request, *args, **kwargs)
        if request.META.get("QUERY_STRING"):
            _refuse_repeated(request)

    def body(self, request: Request) -> dict[str, Any]:
        """The body as an object; an empty one is `{}`."""
        data = request.data
        if not isinstance(data, dict):
            raise MalformedRequest(details={"reason": "the body must be a JSON object"})
        return dict(data)


def _refuse_repeated(request: Request) -> None:
    """Which one of two would count is another matter for every program on the way."""
    repeated = [name for name, values in request.query_params.lists() if len(values) > 1]
    if repeated:
        raise ValidationFailed(details=dict.fromkeys(repeated, "more than once"))


class ActionView(ApiView):
    """An endpoint that answers an ActionResult, whatever happens."""

    def handle_exception(self, exc: Exception) -> Response:
        response = super().handle_exception(exc)
        refused = {"action_id": uuid.uuid4().hex, "result": None, "execution_time": 0.0}
        response.data = {**refused, **response.data}
        return response

    def respond(self, request: Request, action: Action[Any], *, status: int = 200) -> Response:
        """Execute the action in the present tenant scope and answer its ActionResult."""
        request._request.tenant_id = current_tenant_id()  # type: ignore[attr-defined]  # for the log
        result, error = answer(action)
        body = result.model_dump(mode="json")
        if error is not None:
            body["request_id"] = request.request_id  # type: ignore[attr-defined]
            return Response(body, status=error.http_status, headers=headers_of(error))
        return Response(body, status=status)


class KeyView(ApiView):
    """An endpoint of management: needs a tenant key with the right to `area`; runs in its tenant's scope."""

    area: ClassVar[str]

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> HttpResponseBase:
        with ExitStack() as self.scope:
            return super().dispatch(request, *args, **kwargs)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        key = request.auth
        if not isinstance(key, ApiKey):
            raise AuthenticationRequired()
        count_request(key.tenant_id)
        right = "read" if request.method in ("GET", "HEAD", "OPTIONS") else "write"
        needed = f"{self.area}:{right}"
        if needed not in key.scopes:
            raise PermissionRefused(details={"scope": needed})
        self.scope.enter_context(tenant_scope(key.tenant_id))
        self.scope.enter_context(asked_by(with_actor(self.actor(request))))

    def actor(self, request: Request) -> str:
        """Who does it, for the record."""
        key = request.auth
        assert isinstance(key, ApiKey)
        return f"key:{key.prefix}"

    def fields(self, request: Request, shape: type[BaseModel]) -> dict[str, Any]:
        """The body's fields, once they fit `shape`. Raises pydantic's ValidationError."""
        body = self.body(request)
        shape(**body)
        return body
