"""What every request gets."""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from core.audit import Origin, asked_by
from core.models.audit import AuditSource

_request_id = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestIdMiddleware:
    """Name the request, the caller's `X-Request-ID` when it is harmless, and say where it comes from."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        request.request_id = given if _request_id.fullmatch(given) else uuid.uuid4().hex  # type: ignore[attr-defined]
        with asked_by(_origin(request)):
            response = self.get_response(request)
        response["X-Request-ID"] = request.request_id  # type: ignore[attr-defined]
        return response


def _origin(request: HttpRequest) -> Origin:
    """People of the console are asked for when somebody writes it down; what has a key, by its view."""
    request_id = request.request_id  # type: ignore[attr-defined]
    ip = request.META.get("REMOTE_ADDR") or None
    if request.path_info.startswith(_console()):
        return Origin(AuditSource.ADMIN, lambda: f"user:{request.user.get_username()}", request_id, ip)
    return Origin(AuditSource.API, request_id=request_id, ip=ip)


@functools.cache
def _console() -> str:
    return reverse("admin:index")
