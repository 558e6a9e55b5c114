"""docs/settings.md: every environment variable; the meanings are .env.example's comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from nooble.env import ROOT, Environment
from nooble.reference.markdown import code, page, table

_INTRODUCTION = """\
A process reads them once, at its start, from its own environment and from `.env` beside `manage.py`; its own
environment wins. A bad value stops the start with a line that names it. `.env.example` has them all."""

_assignment = re.compile(r"#?([A-Z][A-Z0-9_]*)=(.*)")
_heading = re.compile(r"# --- (.+?) -+")


@dataclass(frozen=True)
class Documented:
    """A variable as .env.example tells of it."""

    section: str
    name: str
    meaning: str


def documented() -> Iterator[Documented]:
    """What .env.example holds, in its order: a variable's meaning is the comment above it."""
    section, comment = "", []
    for line in (ROOT / ".env.example").read_text().splitlines():
        if heading := _heading.fullmatch(line):
            section, comment = heading.group(1), []
        elif assignment := _assignment.fullmatch(line):
            yield Documented(section, assignment.group(1), " ".join(comment))
            comment = []
        else:
            comment = [*comment, line.removeprefix("#").strip()] if line.startswith("#") else []


def names() -> dict[str, FieldInfo]:
    """The variables that `nooble.env` reads, by the first name of each."""
    return {
        field.validation_alias.choices[0]
        if isinstance(field.validation_alias, AliasChoices)
        else name.upper(): field
        for name, field in Environment.model_fields.items()
    }


def render() -> str:
    fields, parts, section = names(), [], None
    rows: list[tuple[str, ...]] = []
    for variable in documented():
        if variable.section != section:
            section, rows = variable.section, []
            parts.append((section, rows))
        field = fields[variable.name]
        rows.append((code(variable.name), _type(field), _default(field), variable.meaning))
    head = ("variable", "type", "default", "meaning")
    return page(
        "Settings",
        _INTRODUCTION,
        *(text for title, rows in parts for text in (f"## {title}", table(head, rows))),
    )


def _type(field: FieldInfo) -> str:
    return _named(field.annotation)


def _named(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_named(part) for part in arguments if part is not type(None))
    if origin is Literal:
        return ", ".join(code(str(part)) for part in arguments)
    if origin is list:
        return f"{_named(arguments[0])}s, comma-separated"
    if isinstance(annotation, type):
        plain = {str: "text", SecretStr: "secret", Path: "path", float: "number", int: "whole number", bool: "0 or 1"}
        return plain.get(annotation, annotation.__name__)
    return str(annotation)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return code(str(int(value)))
    if isinstance(value, Path):
        return code(f"./{value.relative_to(ROOT)}")
    return code(str(value))
