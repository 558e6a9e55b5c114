"""Placeholders in an agent's texts: `{{name}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping

# What a run puts into instructions; see execution/prompt.py.
PROMPT_VARIABLES = ("agent_name", "user_id", "session_id", "date", "time")
NAME_PATTERN = r"^[a-z_]{1,32}$"

_placeholder = re.compile(r"\{\{\s*([a-z_]{1,32})\s*\}\}")


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace `{{name}}` for the names in `values`, in one pass; everything else stays as it is.

    One pass, so that a value can never bring in another placeholder.
    """
    return _placeholder.sub(lambda match: values.get(match.group(1), match.group()), text)


def placeholders(text: str) -> set[str]:
    """The names that stand in `{{…}}` in the text."""
    return set(_placeholder.findall(text))
