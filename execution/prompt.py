"""From a run's context to the messages that a model reads."""

from __future__ import annotations

from agents.variables import fill
from execution.context import RunContext
from execution.limits import fit_history, message_tokens
from execution.messages import ChatMessage


def variables(context: RunContext) -> dict[str, str]:
    """What the names of `PROMPT_VARIABLES` and the session's context variables stand for in this run."""
    return {
        **context.context_variables,
        "agent_name": context.agent_name,
        "user_id": context.end_user,
        "session_id": context.session_id,
        "date": context.now.strftime("%Y-%m-%d"),
        "time": context.now.strftime("%H:%M"),
    }


def build_messages(context: RunContext) -> tuple[ChatMessage, ...]:
    """The instructions, then as much of the history as the context budget takes."""
    instructions = fill(context.config.instructions, variables(context))
    if context.is_given:
        return _joined(instructions, context.history)
    budget = context.config.context_tokens
    if not instructions:
        return fit_history(context.history, budget)
    system = ChatMessage("system", instructions)
    return (system, *fit_history(context.history, budget - message_tokens(system)))


def _joined(instructions: str, given: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The caller's messages behind the instructions.

    System messages at the beginning follow the instructions in one message, since not every model takes
    two; later ones stay where they are. Placeholders stand for something in the instructions only.
    """
    first = next((place for place, message in enumerate(given) if message.role != "system"), len(given))
    parts = [instructions, *(message.content for message in given[:first])]
    system = "\n\n".join(part for part in parts if part)
    return (ChatMessage("system", system), *given[first:]) if system else given[first:]
