"""Queue names: `{domain}:{tenant_id}:{action}:{priority}`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from core.ids import SYSTEM_TENANT, WORD_PATTERN, is_slug

# What workers consume (`-Q agent`); runs of agents have worker processes of their own.
DOMAINS = ("agent", "orchestrator", "workflow", "tool", "conversation", "ingestion")

_word = re.compile(WORD_PATTERN)


class Priority(IntEnum):
    """0 to 9, most urgent last; it orders the work inside one tenant."""

    P0, P1, P2, P3, P4, P5, P6, P7, P8, P9 = range(10)

    @property
    def word(self) -> str:
        """`low` (0-2), `normal` (3-6) or `high` (7-9): what a queue's name carries."""
        return "low" if self <= 2 else "normal" if self <= 6 else "high"

    @classmethod
    def parse(cls, value: object) -> Priority:
        """From a word or a whole number 0-9. Raises ValueError."""
        if isinstance(value, str) and value in _WORDS:
            return _WORDS[value]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9:
            return cls(value)
        raise ValueError("priority must be low, normal, high or 0-9")


_WORDS = {"low": Priority.P1, "normal": Priority.P5, "high": Priority.P8}
LOW, NORMAL, HIGH = _WORDS.values()


@dataclass(frozen=True, slots=True)
class QueueName:
    """A tenant's queue of one action and one priority word."""

    domain: str
    tenant_id: str
    action: str
    priority: str

    def __str__(self) -> str:
        return f"{self.domain}:{self.tenant_id}:{self.action}:{self.priority}"

    @classmethod
    def parse(cls, text: str) -> QueueName:
        """The parts of a four-part name. Raises ValueError."""
        parts = text.split(":")
        if len(parts) != 4:
            raise ValueError(f"not a queue name: {text!r}")
        domain, tenant_id, action, priority = parts
        if (
            not _word.fullmatch(domain)
            or not (tenant_id == SYSTEM_TENANT or is_slug(tenant_id))
            or not _word.fullmatch(action)
            or priority not in _WORDS
        ):
            raise ValueError(f"not a queue name: {text!r}")
        return cls(domain, tenant_id, action, priority)
