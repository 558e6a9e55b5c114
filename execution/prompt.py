"""From a run's context to the messages that a model reads."""

from __future__ import annotations

import re

from execution.context import RunContext
from execution.limits import fit_history, message_tokens
from execution.messages import ChatMessage

_variable = re.compile(r"\{\{\s*([a-z_]{1,32})\s*\}\}")


def fill(template: str, values: dict[str, str]) -> str:
    """Replace `{{name}}` for the names in `values`, in one pass; everything else stays as it is.

    One pass, so that a value can never bring in another placeholder.
    """
    return _variable.sub(lambda match: values.get(match.group(1), match.group()), template)


def variables(context: RunContext) -> dict[str, str]:
    """The names that instructions may use."""
    return {
        "agent_name": context.agent_name,
        "user_id": context.end_user,
        "session_id": context.session_id,
        "date": context.now.strftime("%Y-%m-%d"),
        "time": context.now.strftime("%H:%M"),
    }


def build_messages(context: RunContext) -> tuple[ChatMessage, ...]:
    """The instructions, then as much of the history as the context budget takes."""
    budget = context.config.context_tokens
    instructions = fill(context.config.instructions, variables(context))
    if not instructions:
        return fit_history(context.history, budget)
    system = ChatMessage("system", instructions)
    return (system, *fit_history(context.history, budget - message_tokens(system)))
