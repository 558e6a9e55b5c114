"""The verbs of conversations."""

from __future__ import annotations

import datetime
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from conversations.fields import Context, ContextChange, Title, UserId, UserInfo
from core.actions.base import Action, Result, SessionId


class OpenedSession(Result):
    """`row_id` is the session's key inside the database; `created` tells the first message's session."""

    row_id: int
    created: bool


class ConversationOpenAction(Action[OpenedSession]):
    """A message comes: find the session, or begin it and bind it to its agent.

    `title` is for a session that has none. Who speaks is kept as it was told last; the end user's id as
    it was told first.
    """

    verb = "conversation.open"

    session_id: SessionId
    agent_id: uuid.UUID
    user_id: UserId = ""
    user_info: dict[str, Any] = Field(default_factory=dict)
    title: Title = ""


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


class SessionResource(Result):
    """A session as the API shows it. `ended_at` is null until it is closed or has expired."""

    session_id: str
    agent_id: uuid.UUID
    state: Literal["created", "active", "idle", "closed", "expired"]
    title: str
    user_info: dict[str, Any]
    context: dict[str, str]
    created_at: datetime.datetime
    last_active_at: datetime.datetime
    ended_at: datetime.datetime | None


class SessionCreate(BaseModel):
    """The body of a create. Without a `session_id` the platform makes one that nobody can guess."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: uuid.UUID
    session_id: SessionId | None = None
    title: Title = ""
    user_info: UserInfo = UserInfo()
    context: Context = Field(default_factory=dict)


class SessionUpdate(BaseModel):
    """The body of a change: what is absent stays. A variable that is null is removed.

    A session whose title is empty gets one from its next message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Title | None = None
    context: ContextChange | None = None


class SessionCreateAction(SessionCreate, Action[SessionResource]):
    """Begin a session before anybody has said anything in it."""

    verb = "session.create"


class SessionUpdateAction(SessionUpdate, Action[SessionResource]):
    """Change a session's title or context variables; runs that begin from now on see them."""

    verb = "session.update"

    session_id: SessionId


class SessionCloseAction(Action[SessionResource]):
    """End a session: it takes no more messages, and what runs in it is cancelled."""

    verb = "session.close"

    session_id: SessionId
    by: str = "system"


class SessionDeleteAction(Action[None]):
    """Delete a session with everything that belongs to it. What it has cost stays, without saying whose."""

    verb = "session.delete"

    session_id: SessionId
    by: str = "system"


class DeletedSessions(Result):
    deleted: int


class SessionDeleteOfUserAction(Action[DeletedSessions]):
    """Delete all sessions of one end user."""

    verb = "session.delete_of_user"

    user_id: str = Field(min_length=1, max_length=255)
    by: str = "system"


class SessionEraseAction(Action[None]):
    """Delete what is left of a deleted session; it waits behind the session's runs."""

    verb = "session.erase"
    queue = ("conversation", "erase")

    session_row_id: int
