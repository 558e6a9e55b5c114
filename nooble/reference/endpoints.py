"""docs/endpoints.md: every address, who may call it, and what it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.generators import SchemaGenerator

from core.api.views import ApiView, KeyView
from nooble.reference.markdown import code, page, summary, table
from orchestrator.routing import websocket_urlpatterns

_INTRODUCTION = """\
Shapes of bodies and answers: `/api/schema` (OpenAPI 3.1), to read at `/api/docs`; of what sockets and
queues carry: `/asyncapi.json` (AsyncAPI 3). Errors: [errors.md](errors.md). The order of a session's
events: [events.md](events.md).

The class says whom an address is for, and so what may stand before it:

- `public`: pages and documents, for everybody;
- `chat`: talking to agents, for end users' browsers and for tenants' servers;
- `management`: a tenant's own things, for its servers with a key and its people with an account;
- `internal`: services of the platform, never to be reached from outside;
- `operations`: whoever runs the platform.

*Tenant key* is `Authorization: Bearer <key>` with the scope named; *end-user token* is a JWT in its place,
signed by the tenant; *service token* is `SERVICE_TOKEN`, there as well; *resume token* is the header
`Nooble-Resume`. An object of another tenant answers like one that does not exist: 404."""

_METHODS = ("get", "post", "put", "patch", "delete")
_parameter = re.compile(r"<(?:\w+:)?(\w+)>")
_OF_LIBRARIES = {"/api/schema": "The OpenAPI schema.", "/api/docs": "The schema, to read and to try."}
# By how an address begins, the longest first.
_CLASSES = {
    "/admin/": "management",
    "/api/chat/": "chat",
    "/api/docs": "public",
    "/api/schema": "public",
    "/api/v1/": "management",
    "/api/v1/batch": "chat",
    "/api/v1/chat/": "chat",
    "/api/v1/executions": "chat",
    "/api/v1/sessions/{session_id}/messages": "chat",
    "/asyncapi.json": "public",
    "/chat/": "public",
    "/favicon.ico": "public",
    "/health": "operations",
    "/internal/v1/": "internal",
    "/metrics": "operations",
    "/v1/": "chat",
    "/ws/stats": "operations",
    "/ws/task_updates": "internal",
    "/ws/tenants/": "management",
    "/ws/{tenant_id}/{session_id}": "chat",
}
_CONSOLE = "/admin/"
Row = tuple[str, ...]


def render() -> str:
    operations = SchemaGenerator().get_schema(public=True)["paths"]
    sockets = []
    for pattern in websocket_urlpatterns:
        consumer = pattern.callback.consumer_class
        if path := _path(pattern):
            path = f"/{path}"
            sockets.append((class_of(path), code(path), consumer.callers, summary(consumer)))
    return page(
        "Endpoints",
        _INTRODUCTION,
        "## HTTP",
        table(("class", "method", "path", "who", "what"), _rows(get_resolver(), "/", operations)),
        "## WebSocket",
        table(("class", "path", "who", "what"), sockets),
    )


def class_of(path: str) -> str:
    """Whom an address is for. Raises ValueError for one that nobody has said it of."""
    if path == "/":
        return "public"
    known = [start for start in _CLASSES if path.startswith(start)]
    if not known:
        raise ValueError(f"{path} has no class: say in {__name__} whom it is for")
    return _CLASSES[max(known, key=len)]


def _rows(resolver: URLResolver, prefix: str, operations: dict[str, Any]) -> Iterator[Row]:
    """Every address in the order of the URL configuration; the console's are one."""
    for pattern in resolver.url_patterns:
        path = prefix + _path(pattern)
        if path.startswith(_CONSOLE):
            if isinstance(pattern, URLResolver) and pattern.namespace == "admin":
                yield class_of(path), "any", code(path), "people with an account", "The console."
        elif isinstance(pattern, URLResolver):
            yield from _rows(pattern, path, operations)
        else:
            yield from _methods(pattern.callback, path, operations.get(path))


def _methods(callback: Any, path: str, operations: dict[str, Any] | None) -> Iterator[Row]:
    view = getattr(callback, "view_class", None) or getattr(callback, "cls", None)
    if view is None:
        yield class_of(path), "GET", code(path), "anybody", summary(callback)
    elif operations is None and issubclass(view, ApiView):
        yield class_of(path), "any", code(path), _callers(view, "get"), summary(view)
    else:
        for method in _METHODS:
            if hasattr(view, method):
                what = _OF_LIBRARIES.get(path) or summary(getattr(view, method)) or summary(view)
                yield class_of(path), method.upper(), code(path), _callers(view, method), what


def _callers(view: Any, method: str) -> str:
    if callers := getattr(view, "callers", ""):
        return str(callers)
    if issubclass(view, KeyView):
        return f"tenant key, `{view.area}:{'read' if method == 'get' else 'write'}`"
    return "anybody"


def _path(pattern: URLPattern | URLResolver) -> str:
    return _parameter.sub(r"{\1}", str(pattern.pattern))
