"""The rules of conversations."""

from __future__ import annotations

from conversations.actions import (
    AppendedMessage,
    ConversationAppendAction,
    ConversationOpenAction,
    OpenedSession,
)
from conversations.errors import SessionBound
from conversations.models import Message, Session
from core.actions.registry import handles
from core.tenancy import current_tenant_id


@handles(ConversationOpenAction)
def open_session(action: ConversationOpenAction) -> OpenedSession:
    """Two first messages at once make one session: the second waits for the first's commit."""
    session, created = Session.objects.get_or_create(
        tenant_id=current_tenant_id(),
        key=action.session_id,
        defaults={"agent_id": action.agent_id, "user_id": action.user_id},
    )
    if session.agent_id != action.agent_id:
        raise SessionBound()
    return OpenedSession(row_id=session.pk, created=created)


@handles(ConversationAppendAction)
def append(action: ConversationAppendAction) -> AppendedMessage:
    message = Message.objects.create(
        tenant_id=current_tenant_id(),
        session_id=action.session_row_id,
        task_id=action.task_id,
        role=action.role,
        text=action.text,
        finish_reason=action.finish_reason,
        seq=action.seq,
    )
    return AppendedMessage(message_id=message.pk)
