"""What doors there are, read from the code, and how one knocks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from django.db import transaction
from django.http.response import HttpResponseBase
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from tests.isolation.routes import Case

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ADMIN = "admin/"
_each_time = re.compile(r'"(?:action_id|execution_time|task_id|queue)":\s*[^,}]*,?')
_parameter = re.compile(r"<(?:\w+:)?(\w+)>")

# What differs between any two answers: names of the request, clocks, and what limits have left.
VOLATILE = ("X-Request-ID", "RateLimit", "RateLimit-Policy", "X-RateLimit-Remaining", "X-RateLimit-Reset")


def patterns(resolver: Any = None, prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    """Every address that the resolver knows, as it is spelled there."""
    for item in (resolver or get_resolver()).url_patterns:
        if isinstance(item, URLResolver):
            yield from patterns(item, prefix + str(item.pattern))
        else:
            yield prefix + str(item.pattern), item


def routes() -> list[tuple[str, str]]:
    """(method, route) of everything but the console."""
    found = []
    for route, pattern in patterns():
        if not route.startswith(ADMIN):
            view = getattr(pattern.callback, "view_class", None) or getattr(pattern.callback, "cls", None)
            methods = [name for name in METHODS if view is None or hasattr(view, name.lower())]
            found += [(method, route) for method in methods]
    return found


def parameters(route: str) -> list[str]:
    return _parameter.findall(route)


def filled(value: Any, mine: dict[str, Any], tried: dict[str, Any]) -> Any:
    """`$name` is an id that is tried, `@name` one of the asker's."""
    if isinstance(value, dict):
        return {name: filled(item, mine, tried) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [filled(item, mine, tried) for item in value]
    if isinstance(value, str) and value[:1] in ("$", "@"):
        return (tried if value[0] == "$" else mine)[value[1:]]
    return value


def address(route: str, case: Case, tried: dict[str, Any]) -> str:
    return "/" + _parameter.sub(lambda found: str(tried[case.ids.get(found[1], found[1])]), route)


def has_ids(route: str, case: Case) -> bool:
    """Whether something of somebody's is named at all."""
    return bool(parameters(route)) or "$" in json.dumps([case.body, case.query])


def ask(
    method: str,
    route: str,
    case: Case,
    mine: dict[str, Any],
    tried: dict[str, Any],
    headers: dict[str, str],
    extra: dict[str, Any] | None = None,
) -> Any:
    body = filled(case.body, mine, tried)
    if extra is not None:
        body = {**(body or {}), **extra}
    # A refusal ends its transaction; the test's own goes on.
    with transaction.atomic():
        return Client().generic(
            method,
            address(route, case, tried),
            json.dumps(body) if body is not None else "",
            content_type="application/json",
            query_params=filled(case.query, mine, tried),
            headers={"Accept-Language": "en", **headers},
        )


def seen(answer: HttpResponseBase, tried: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    """Status, headers and body, without what differs between any two answers and the ids asked for."""
    text = b"".join(answer).decode() if not answer.streaming else "a stream"
    request_id = answer.headers.get("X-Request-ID", "")
    for value in (request_id, *(str(value) for value in tried.values() if len(str(value)) > 3)):
        text = text.replace(value, "…") if value else text
    text = _each_time.sub("", text)
    headers = {name: value for name, value in answer.headers.items() if name not in VOLATILE}
    headers.pop("Content-Length", None)  # it follows from the body, and ids differ in length
    return answer.status_code, headers, text
