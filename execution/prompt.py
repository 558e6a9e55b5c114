"""From a run's context to the messages that a model reads."""

from __future__ import annotations

from agents.variables import fill
from execution.context import RunContext
from execution.limits import fit_history, message_tokens
from execution.messages import ChatMessage


def variables(context: RunContext) -> dict[str, str]:
    """What the names of `PROMPT_VARIABLES` stand for in this run."""
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
