"""Bodies: JSON and nothing else, bounded in size and depth."""

from __future__ import annotations

from typing import IO, Any

import orjson
from django.utils.translation import gettext_lazy as _
from rest_framework.parsers import BaseParser

from core.errors import BodyTooLarge, MalformedRequest, ValidationFailed

MAX_BODY = 256 * 1024  # bytes
MAX_IMPORT = 32 * 1024 * 1024  # of what carries many things, or everything of one
MAX_DEPTH = 32
TOO_FAR = 2.0**63
MAX_KEYS = 1_000  # of one object: each that nobody knows costs its refusal a line


def parse_json(raw: bytes | str) -> Any:
    """Strict JSON: no NaN, no lone surrogates, at most 32 levels deep, no NUL in any text, no number
    beyond 64 bits, no object of more than 1,000 fields.

    Raises MalformedRequest; ValidationFailed for a NUL, which PostgreSQL cannot store, and for such a
    number, of which it makes an integer that nobody can write again.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(details={"reason": str(error)}) from None
    level = [value]
    for _depth in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if "\0" in item:
                    raise ValidationFailed(
                        _("Text must not contain NUL characters."), details={"body": "a NUL character"}
                    )
            elif isinstance(item, dict):
                if len(item) > MAX_KEYS:
                    raise MalformedRequest(details={"reason": f"an object of more than {MAX_KEYS} fields"})
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, float) and not -TOO_FAR < item < TOO_FAR:
                raise ValidationFailed(details={"body": "a number beyond 64 bits"})
        if not below:
            return value
        level = below
    raise MalformedRequest(details={"reason": f"deeper than {MAX_DEPTH} levels"})


class StrictJSONParser(BaseParser):
    """DRF's door to `parse_json`."""

    media_type = "application/json"

    def parse(self, stream: IO[bytes], media_type: str | None = None, parser_context: Any = None) -> Any:
        limit = getattr((parser_context or {}).get("view"), "max_body", MAX_BODY)
        raw = stream.read(limit + 1)
        if len(raw) > limit:
            raise BodyTooLarge(details={"limit": limit})
        return parse_json(raw)
