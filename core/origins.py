"""Origins of browsers: which are sound, and the one way to write each."""

from __future__ import annotations

import functools
import re
from urllib.parse import urlsplit

_host = re.compile(r"[a-z0-9._:-]+")  # names, IPv4, IPv6 without its brackets
_PORTS = {"http": 80, "https": 443}


@functools.lru_cache(maxsize=1024)
def origin_is_sound(origin: str) -> bool:
    """Whether a browser's Origin is a plain `scheme://host[:port]`; `null` is not."""
    try:
        parts = urlsplit(origin)
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and _host.fullmatch(parts.hostname or "") is not None
        and "@" not in parts.netloc
        and origin == f"{parts.scheme}://{parts.netloc}"
    )


def as_browsers_write(origin: str) -> str:
    """The origin in lower case, without the port that its scheme has anyway.

    Raises ValueError for what no browser would send.
    """
    text = origin.strip().lower()
    if not origin_is_sound(text):
        raise ValueError("an origin is http:// or https://, a host and perhaps a port, and nothing else")
    parts = urlsplit(text)
    if parts.port == _PORTS[parts.scheme] or parts.netloc.endswith(":"):
        return f"{parts.scheme}://{parts.netloc.rpartition(':')[0]}"
    return text
