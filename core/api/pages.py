"""Lists come in pages: `limit` and `cursor` in, `{"items", "next"}` out. And what else their queries hold."""

from __future__ import annotations

import uuid

from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from core.errors import ValidationFailed
from core.ids import parse_uuid

DEFAULT_LIMIT = 50
MAX_LIMIT = 200

# For the schema: of a list whose cursors are ids, and of one whose cursors are numbers.
LIMIT = OpenApiParameter(
    "limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
)
PAGE = (LIMIT, OpenApiParameter("cursor", uuid.UUID))
NUMBER = {"type": "integer", "minimum": 1, "maximum": 10**18 - 1}
NUMBERED_PAGE = (LIMIT, OpenApiParameter("cursor", NUMBER))


def limit_of(request: Request) -> int:
    """How many items the caller wants. Raises ValidationFailed."""
    text = request.query_params.get("limit", str(DEFAULT_LIMIT))
    if not text.isascii() or not text.isdecimal() or len(text) > 3 or not 1 <= int(text) <= MAX_LIMIT:
        raise ValidationFailed(details={"limit": f"a number from 1 to {MAX_LIMIT}"})
    return int(text)


def cursor_of(request: Request) -> uuid.UUID | None:
    """Where the page begins. Raises ValidationFailed."""
    text = request.query_params.get("cursor")
    if text is None:
        return None
    cursor = parse_uuid(text)
    if cursor is None:
        raise ValidationFailed(details={"cursor": "not a cursor of ours"})
    return cursor


def number_of(request: Request, name: str) -> int | None:
    """A whole number from 1 on among the query's parameters; None without it. Raises ValidationFailed."""
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise ValidationFailed(details={name: "a whole number from 1 on"})
    return int(text)


def text_of(request: Request, name: str, longest: int) -> str | None:
    """A text among the query's parameters; None without it. Raises ValidationFailed."""
    text: str | None = request.query_params.get(name)
    if text is not None and ("\0" in text or len(text) > longest):
        raise ValidationFailed(details={name: f"at most {longest} characters, none of them NUL"})
    return text
