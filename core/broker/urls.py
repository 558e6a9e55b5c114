"""REDIS_URL in the dialects of those who read it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

from kombu.transport import TRANSPORT_ALIASES

TRANSPORT_ALIASES["nooble"] = TRANSPORT_ALIASES["noobles"] = "core.broker.transport:Transport"


def broker_url(url: str) -> str:
    """For Celery: schemes of our own, since kombu resolves `redis+socket` to its stock transport."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        database = parse_qs(parts.query).get("db", ["0"])[0]
        return f"nooble+socket://{parts.netloc}{parts.path}?virtual_host={database}"
    # What is in the query is for redis-py; kombu takes the database from the path, and checks no
    # certificate unless told to.
    query = dict(parse_qsl(parts.query))
    database = query.get("db", parts.path.strip("/") or "0")
    if parts.scheme == "redis":
        return urlunsplit(("nooble", parts.netloc, f"/{database}", "", ""))
    checks = {"ssl_cert_reqs": "required"} | {name: query[name] for name in query if name.startswith("ssl_")}
    return urlunsplit(("noobles", parts.netloc, f"/{database}", urlencode(checks), ""))


def channels_host(url: str) -> dict[str, Any]:
    """For channels-redis. Its pool must hold a connection per burst, not redis-py's default of 100."""
    return {"address": url, "max_connections": 2000, "socket_connect_timeout": 2}
