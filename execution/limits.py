"""How much fits into a request, and what a text weighs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from execution.messages import ChatMessage

CHARACTERS_PER_TOKEN = 4  # the usual rule of thumb; exact counts come from the provider
TOKENS_PER_MESSAGE = 4  # role and separators


def estimated_tokens(text: str) -> int:
    """Roughly how many tokens `text` has; at least 1 for any text."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def message_tokens(message: ChatMessage) -> int:
    return estimated_tokens(message.content) + TOKENS_PER_MESSAGE


def most_tokens(messages: Iterable[ChatMessage]) -> int:
    """More tokens than any tokenizer makes of the messages: none makes two of one byte."""
    return sum(len(message.content.encode()) + 2 * TOKENS_PER_MESSAGE for message in messages)


def fit_history(history: Sequence[ChatMessage], budget: int) -> tuple[ChatMessage, ...]:
    """The newest messages whose estimated tokens fit into `budget`; the last one always stays.

    It never begins with an answer: its question would be missing.
    """
    kept = len(history) - 1
    left = budget - message_tokens(history[-1])
    while kept > 0:
        left -= message_tokens(history[kept - 1])
        if left < 0:
            break
        kept -= 1
    while kept < len(history) - 1 and history[kept].role == "assistant":
        kept += 1
    return tuple(history[kept:])
