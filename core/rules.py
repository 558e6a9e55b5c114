"""Rules of bodies that pydantic has no word for: numbers as JSON has them, and several fields together.

The latter as JSON Schema says them, for `json_schema_extra`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def _is_number(value: object) -> object:
    if isinstance(value, bool | str):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


# For an int, behind its bounds, which the schema would lose otherwise: 5.0 is one, "5" and true are none.
WHOLE = BeforeValidator(_is_number)


def exactly_one(*names: str) -> dict[str, Any]:
    return {"oneOf": [present(name) for name in names]}


def at_least_one(*names: str) -> dict[str, Any]:
    return {"anyOf": [present(name) for name in names]}


def present(name: str) -> dict[str, Any]:
    """There, and not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
