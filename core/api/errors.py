"""The one shape of every error answer."""

from __future__ import annotations

import logging
import sys
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from pydantic import ValidationError
from redis import RedisError
from rest_framework import exceptions as drf
from rest_framework.response import Response

from core import errors
from core.api.renderers import OrjsonRenderer

logger = logging.getLogger(__name__)

_KNOWN: tuple[tuple[type[Exception], type[errors.NoobleError]], ...] = (
    (drf.UnsupportedMediaType, errors.UnsupportedMediaType),
    (drf.MethodNotAllowed, errors.MethodNotAllowed),
    (drf.NotAuthenticated, errors.AuthenticationRequired),
    (drf.AuthenticationFailed, errors.AuthenticationRequired),
    (drf.PermissionDenied, errors.PermissionRefused),
    (drf.NotAcceptable, errors.NotAcceptable),
    (drf.Throttled, errors.RateLimited),
    (drf.ParseError, errors.MalformedRequest),
    (drf.NotFound, errors.NotFound),
    (Http404, errors.NotFound),
    (PermissionDenied, errors.PermissionRefused),
    (RequestDataTooBig, errors.BodyTooLarge),
    (OperationalError, errors.ServiceUnavailable),
    (RedisError, errors.ServiceUnavailable),
    (ConnectionError, errors.ServiceUnavailable),
)
_AWAY = tuple(kind for kind, ours in _KNOWN if ours is errors.ServiceUnavailable)


def named(error: Exception) -> errors.NoobleError:
    """The named error that a caller sees for `error`; an unexpected one is logged and stays a secret."""
    if isinstance(error, errors.NoobleError):
        return error
    if isinstance(error, ValidationError):
        return errors.ValidationFailed.of(error)
    for kind, ours in _KNOWN:
        if isinstance(error, kind):
            if ours is errors.ServiceUnavailable:
                logger.warning("a service is away: %s", error)
            return ours()
    logger.error("unexpected error", exc_info=error)
    return errors.InternalError()


def body_of(error: errors.NoobleError, request_id: str) -> dict[str, Any]:
    return {"success": False, "error": error.as_dict(), "request_id": request_id}


def headers_of(error: errors.NoobleError) -> dict[str, str]:
    retry_after = getattr(error, "retry_after", None)
    if error.http_status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {"Retry-After": str(retry_after)} if retry_after is not None else {}


def exception_handler(error: Exception, context: dict[str, Any]) -> Response:
    """DRF's hook. In JSON, whatever else the view can write and the caller would rather read."""
    ours = named(error)
    request = context["request"]
    request.accepted_renderer = OrjsonRenderer()
    request.accepted_media_type = OrjsonRenderer.media_type
    request_id = getattr(request, "request_id", "")
    return Response(body_of(ours, request_id), status=ours.http_status, headers=headers_of(ours))


def refused(request: HttpRequest, error: errors.NoobleError) -> JsonResponse:
    """For what no view of the API answers."""
    return JsonResponse(
        body_of(error, getattr(request, "request_id", "")),
        status=error.http_status,
        headers=headers_of(error),
    )


def not_found(request: HttpRequest, exception: Exception | None = None) -> JsonResponse:
    """Django's `handler404`: a path that nobody serves."""
    return refused(request, errors.NotFound())


def bad_request(request: HttpRequest, exception: Exception | None = None) -> JsonResponse:
    """Django's `handler400`."""
    return refused(request, errors.MalformedRequest())


def server_error(request: HttpRequest) -> JsonResponse:
    """Django's `handler500`: of pages and the console. A service that is away is named here too."""
    away = isinstance(sys.exception(), _AWAY)
    return refused(request, errors.ServiceUnavailable() if away else errors.InternalError())
