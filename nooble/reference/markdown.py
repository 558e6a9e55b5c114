"""The little Markdown that generated pages are made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence


def page(title: str, *parts: str) -> str:
    note = "Generated from the code by `manage.py docs`: change the code, not this page."
    return "\n\n".join((f"# {title}", note, *parts)) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    return f"`{text}`"


def summary(thing: object) -> str:
    """The docstring's first paragraph of what has one of its own, on one line."""
    own = getattr(thing, "__doc__", None)
    return " ".join(inspect.cleandoc(own).split("\n\n")[0].split()) if own else ""
