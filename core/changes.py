"""What differs between two states of something."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LONG = 80  # characters; longer texts, and those of several lines, are compared line by line


@dataclass(frozen=True, slots=True)
class Change:
    """A field, dotted (`config.fallback.model`), as it was and as it is; None where it was absent."""

    field: str
    before: Any
    after: Any

    @property
    def diff(self) -> str:
        """The unified diff of two texts of which one is long; else empty."""
        before, after = self.before or "", self.after or ""
        if not isinstance(before, str) or not isinstance(after, str):
            return ""
        if not any(len(text) > LONG or "\n" in text for text in (before, after)):
            return ""
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """`{field, before, after}`, and `diff` of a long text."""
        shown = {"field": self.field, "before": self.before, "after": self.after}
        return {**shown, "diff": self.diff} if self.diff else shown


def changes_between(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[Change]:
    """Every field that differs, in the order of the states."""
    return list(_changes(before, after, prefix))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str) -> Iterator[Change]:
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{prefix}{name}.")
        elif old != new:
            yield Change(prefix + name, old, new)
