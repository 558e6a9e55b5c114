"""docs/endpoints.md: every address, who may call it, and what it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from core.api.views import ApiView, KeyView
from nooble.reference.markdown import code, page, summary, table
from orchestrator.routing import websocket_urlpatterns

_INTRODUCTION = """\
Shapes of bodies and answers: `/api/schema` (OpenAPI 3.1), to read at `/api/docs`. Errors:
[errors.md](errors.md). What sockets say: [events.md](events.md).

*Tenant key* is `Authorization: Bearer <key>` with the scope named; *resume token* is the header
`Nooble-Resume`. An object of another tenant answers like one that does not exist: 404."""

_METHODS = ("get", "post", "put", "patch", "delete")


def render() -> str:
    rows = [row for pattern, path in _patterns(get_resolver()) for row in _rows(pattern, path)]
    sockets = [
        (code(f"/{_path(pattern)}"), summary(pattern.callback.consumer_class))
        for pattern in websocket_urlpatterns
        if _path(pattern)
    ]
    return page(
        "Endpoints",
        _INTRODUCTION,
        "## HTTP",
        table(("method", "path", "who", "what"), rows),
        "## WebSocket",
        table(("path", "what"), sockets),
    )


def _patterns(resolver: Any, prefix: str = "/") -> Iterator[tuple[URLPattern | URLResolver, str]]:
    """Every address in the order of the URL configuration; the admin's are one."""
    for pattern in resolver.url_patterns:
        path = prefix + _path(pattern)
        if isinstance(pattern, URLResolver) and pattern.urlconf_name != admin.site.urls[0]:
            yield from _patterns(pattern, path)
        else:
            yield pattern, path


def _path(pattern: Any) -> str:
    return str(pattern.pattern).replace("<str:", "{").replace("<uuid:", "{").replace(">", "}")
