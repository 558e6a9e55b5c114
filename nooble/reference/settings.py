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
_PLAIN = {
    str: "text",
    SecretStr: "secret",
    Path: "path",
    float: "number",
    int: "whole number",
    bool: "0 or 1",
}
_heading = re.compile(r"# --- (.+?) -+")


@dataclass(frozen=True)
class Documented:
    """A variable as .env.example tells of it."""

    section: str
    name: str
    meaning: str


def documented() -> Iterator[Documented]:
    """What .env.example holds, in its order: a variable's meaning is the comment above it."""
    section, comment = "", list[str]()
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

    def variable(name: str, field: FieldInfo) -> str:
        alias = field.validation_alias
        return str(alias.choices[0]) if isinstance(alias, AliasChoices) else name.upper()

    return {variable(name, field): field for name, field in Environment.model_fields.items()}


def render() -> str:
    fields = names()
    sections: dict[str, list[tuple[str, ...]]] = {}
    for variable in documented():
        field = fields[variable.name]
        row = (code(variable.name), _named(field.annotation), _default(field), variable.meaning)
        sections.setdefault(variable.section, []).append(row)
    head = ("variable", "type", "default", "meaning")
    tables = (text for title, rows in sections.items() for text in (f"## {title}", table(head, rows)))
    return page("Settings", _INTRODUCTION, *tables)


def _named(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_named(part) for part in arguments if part is not type(None))
    if origin is Literal:
        return ", ".join(code(str(part)) for part in arguments)
    if origin is list:
        return f"{_named(arguments[0])}s, comma-separated"
    if isinstance(annotation, type):
        return _PLAIN.get(annotation, annotation.__name__)
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
