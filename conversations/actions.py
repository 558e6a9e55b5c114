"""The verbs of conversations."""

from __future__ import annotations

import uuid
from typing import Literal

from core.actions.base import Action, Result, SessionId


class OpenedSession(Result):
    """`row_id` is the session's key inside the database; `created` tells the first message's session."""

    row_id: int
    created: bool


class ConversationOpenAction(Action[OpenedSession]):
    """Find the session, or begin it and bind it to its agent."""

    verb = "conversation.open"

    session_id: SessionId
    agent_id: uuid.UUID
    user_id: str = ""


class AppendedMessage(Result):
    message_id: int


class ConversationAppendAction(Action[AppendedMessage]):
    """Add a message; `seq` is the last of the session's log at this moment."""

    verb = "conversation.append"

    session_row_id: int
    task_id: uuid.UUID
    role: Literal["user", "assistant"]
    text: str
    seq: int
    finish_reason: str = ""
