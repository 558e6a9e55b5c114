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


def parse_json(raw: bytes | str) -> Any:
    """Strict JSON: no NaN, no lone surrogates, at most 32 levels deep, no NUL in any text.

    Raises MalformedRequest, or ValidationFailed for a NUL, which PostgreSQL cannot store.
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
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
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
