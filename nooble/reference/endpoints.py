"""docs/endpoints.md: every address, who may call it, and what it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.generators import SchemaGenerator

from core.api.views import KeyView
from nooble.reference.markdown import code, page, summary, table
from orchestrator.routing import websocket_urlpatterns

_INTRODUCTION = """\
Shapes of bodies and answers: `/api/schema` (OpenAPI 3.1), to read at `/api/docs`. Errors:
[errors.md](errors.md). What sockets say: [events.md](events.md).

*Tenant key* is `Authorization: Bearer <key>` with the scope named; *resume token* is the header
`Nooble-Resume`. An object of another tenant answers like one that does not exist: 404."""

_METHODS = ("get", "post", "put", "patch", "delete")
_parameter = re.compile(r"<(?:\w+:)?(\w+)>")
_OF_LIBRARIES = {"/api/schema": "The OpenAPI schema.", "/api/docs": "The schema, to read and to try."}
Row = tuple[str, str, str, str]


def render() -> str:
    operations = SchemaGenerator().get_schema(public=True)["paths"]
    sockets = [
        (code(f"/{_path(pattern)}"), summary(pattern.callback.consumer_class))
        for pattern in websocket_urlpatterns
        if _path(pattern)
    ]
    return page(
        "Endpoints",
        _INTRODUCTION,
        "## HTTP",
        table(("method", "path", "who", "what"), _rows(get_resolver(), "/", operations)),
        "## WebSocket",
        table(("path", "what"), sockets),
    )


def _rows(resolver: URLResolver, prefix: str, operations: dict[str, Any]) -> Iterator[Row]:
    """Every address in the order of the URL configuration; the console's are one."""
    for pattern in resolver.url_patterns:
        path = prefix + _path(pattern)
        if not isinstance(pattern, URLResolver):
            yield from _methods(pattern, path, operations.get(path, {}))
        elif pattern.namespace == "admin":
            yield "", code(path), "people with an account", "The console."
        else:
            yield from _rows(pattern, path, operations)


def _methods(pattern: URLPattern, path: str, operations: dict[str, Any]) -> Iterator[Row]:
    view = getattr(pattern.callback, "view_class", None) or getattr(pattern.callback, "cls", None)
    for method in _METHODS:
        if hasattr(view, method):
            what = _OF_LIBRARIES.get(path) or summary(getattr(view, method)) or summary(view)
            yield method.upper(), code(path), _callers(view, method, operations.get(method, {})), what


def _callers(view: Any, method: str, operation: dict[str, Any]) -> str:
    if issubclass(view, KeyView):
        return f"tenant key, `{view.area}:{'read' if method == 'get' else 'write'}`"
    headers = [
        parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "header"
    ]
    if "Nooble-Resume" in headers:
        return "resume token, or tenant key"
    return "anybody"


def _path(pattern: URLPattern | URLResolver) -> str:
    return _parameter.sub(r"{\1}", str(pattern.pattern))
