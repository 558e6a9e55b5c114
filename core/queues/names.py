"""Queue names: `{domain}:{tenant_id}:{action}:{priority}`; and what else people call queues."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from enum import IntEnum

from core.ids import SYSTEM_TENANT, WORD_PATTERN, is_session_id, is_slug

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


# The service documents' names, up to the tenant: the domain and the action of our queues that do that work,
# or what does it where no queue does. After the tenant may come an id, which our queues do not have.
ALIASES: Mapping[str, tuple[str, str] | str] = {
    "agent-management.tasks.": ("orchestrator", "agent_bulk_update"),
    "agent-management.validation.": ("agent", "validate"),
    "agent-management.templates.": "what changes a template answers at once",
    "agent-management.notifications.": ("orchestrator", "notice_relay"),
    "agent_execution:": ("agent", "execute"),
    "agent_tools:": ("tool", ""),
    "agent_responses:": "what a run comes to is in its session's log and in its task's row",
    "agent_streaming:": "what a run says is in its session's log",
    "orchestrator:session:": "what happens in a session is in its log",
    "orchestrator:tasks:": "tasks are rows of a table, whatever queue they wait in",
    "orchestrator:system:notifications": "notices are rows of the outbox",
}


class NoQueue(ValueError):
    """A name that the service documents give to what is no queue; the message says what is there instead."""


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """Queues of a domain: a tenant's, an action's, of a priority word. An empty part stands for all."""

    domain: str
    tenant_id: str = ""
    action: str = ""
    priority: str = ""

    @classmethod
    def parse(cls, text: str) -> QueueFilter:
        """From a domain, a queue's name, or an alias with its tenant.

        A queue's name wins over an alias that looks like it. Raises NoQueue; ValueError for what is no name.
        """
        if text in DOMAINS:
            return cls(text)
        try:
            name = QueueName.parse(text)
        except ValueError:
            return cls._of_alias(text)
        return cls(name.domain, name.tenant_id, name.action, name.priority)

    @classmethod
    def _of_alias(cls, text: str) -> QueueFilter:
        for prefix, meaning in ALIASES.items():
            if not text.startswith(prefix):
                continue
            if isinstance(meaning, str):
                raise NoQueue(f"{text!r} is no queue here: {meaning}")
            tenant_id, separator, extra_id = text.removeprefix(prefix).partition(prefix[-1])
            if is_slug(tenant_id) and (not separator or is_session_id(extra_id)):
                return cls(meaning[0], tenant_id, meaning[1])
        raise ValueError(f"not a queue name: {text!r}")

    def includes(self, name: QueueName) -> bool:
        return all(part in ("", own) for part, own in zip(astuple(self), astuple(name), strict=True))
