"""What every request gets."""

from __future__ import annotations

import contextvars
import functools
import os
import re
import time
from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from core import metrics, tracing
from core.addresses import address_of
from core.api.late import LateResponse
from core.audit import Origin, asked_by
from core.models.audit import AuditSource

log = structlog.get_logger(__name__)

_request_id = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Asked all the time, by machines: a line only when something is wrong.
_QUIET = ("health", "health/detailed", "metrics", "ws/stats")
LONGEST = 200  # characters of a path that nobody serves


class RequestIdMiddleware:
    """Name the request, the caller's `X-Request-ID` when it is harmless, and say where it comes from.

    The request goes on with the trace of `traceparent`, or begins one; it is counted, and is one line of
    the log: with the route and not the path, in which there are ids that open something.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        begun = time.perf_counter()
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = given if _request_id.fullmatch(given) else os.urandom(16).hex()
        request.request_id = request_id  # type: ignore[attr-defined]
        traceparent = request.META.get("HTTP_TRACEPARENT", "")
        with tracing.context(traceparent, request_id=request_id), asked_by(_origin(request, request_id)):
            span = tracing.begin(request.method or "", "server")
            response = self.get_response(request)
            tell = functools.partial(_tell, request, response, begun, span)
            if isinstance(response, LateResponse):
                response.arrived = functools.partial(contextvars.copy_context().run, tell)
            else:
                tell()
        response["X-Request-ID"] = request_id
        return response


def _tell(request: HttpRequest, response: HttpResponse, begun: float, span: tracing.Span | None) -> None:
    """Count the answer, log it, and end its span."""
    seconds = time.perf_counter() - begun
    status = response.status_code
    route = request.resolver_match.route if request.resolver_match is not None else None
    metrics.REQUESTS.add(str(status))
    metrics.REQUEST_SECONDS.observe(seconds)
    error = _error_of(response) if status >= 400 else ""
    if error:
        metrics.REFUSALS.add(error)
    if status >= 400 or (route is not None and route not in _QUIET):
        told = {"route": route} if route is not None else {"path": request.path[:LONGEST]}
        if error:
            told["error"] = error
        if tenant := _tenant_of(request):
            told["tenant_id"] = tenant
        log.info("request", method=request.method, status=status, ms=round(seconds * 1000, 2), **told)
    if span is not None:
        answered: dict[str, str | int] = {"http.request.method": request.method or ""}
        answered["http.response.status_code"] = status
        if route is not None:
            span.rename(f"{request.method} /{route}")
            answered["http.route"] = f"/{route}"
        span.set(**answered)
        span.end(error if status >= 500 else "")


def _tenant_of(request: HttpRequest) -> str:
    """Whose request it was: its view has left the tenant's scope by now."""
    owner = getattr(request, "auth", None)
    return getattr(request, "tenant_id", "") or getattr(owner, "tenant_id", "")


def _error_of(response: HttpResponse) -> str:
    """The name of the error that an answer of the API tells."""
    data = getattr(response, "data", None)
    error = data.get("error") if isinstance(data, dict) else None
    return str(error["type"]) if isinstance(error, dict) and "type" in error else ""


def _origin(request: HttpRequest, request_id: str) -> Origin:
    """People of the console are asked for when somebody writes it down; what has a key, by its view."""
    ip = address_of(request)
    if request.path_info.startswith(_console()):
        return Origin(AuditSource.ADMIN, lambda: f"user:{request.user.get_username()}", request_id, ip)
    return Origin(AuditSource.API, request_id=request_id, ip=ip)


@functools.cache
def _console() -> str:
    return reverse("admin:index")
