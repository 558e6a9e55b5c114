"""The shapes that cross between a run and a model provider; plain data, no framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "content_filter", "cancelled"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message as a model reads it."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a run waits, in seconds; each wait has its own bound."""

    connect: float = 5.0
    first_token: float = 60.0
    between_tokens: float = 30.0
    total: float = 300.0


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call of a model.

    `temperature` and `max_output_tokens` (tokens) are left to the provider when None. The answer ends
    before the first of the `stop` sequences.
    """

    model: str
    messages: tuple[ChatMessage, ...]
    temperature: float | None = None
    max_output_tokens: int | None = None
    deadlines: Deadlines = Deadlines()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one provider call.

    `accuracy` says where the numbers come from: the provider reported them (`exact`),
    we counted what we saw (`estimated`), or nobody knows (`unknown`).
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    accuracy: Literal["exact", "estimated", "unknown"] = "exact"


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer, never empty, in order."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last item of every stream that did not fail; `usage` is None when the provider kept silent."""

    reason: FinishReason
    usage: Usage | None


ModelEvent = TextDelta | Finished
