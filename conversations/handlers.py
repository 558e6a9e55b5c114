"""The rules of conversations."""

from __future__ import annotations

import uuid

from django.db import connection

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
    """Two first messages at once make one session: the second insert waits for the first's commit."""
    row = _find(action.session_id)
    if row is None:
        row_id = _insert(action)
        if row_id is not None:
            return OpenedSession(row_id=row_id, created=True)
        row = _find(action.session_id)
        assert row is not None, "the one who was faster has committed"
    row_id, agent_id = row
    if agent_id != action.agent_id:
        raise SessionBound()
    return OpenedSession(row_id=row_id, created=False)


def _find(key: str) -> tuple[int, uuid.UUID] | None:
    row: tuple[int, uuid.UUID] | None = Session.objects.filter(key=key).values_list("pk", "agent_id").first()
    return row


def _insert(action: ConversationOpenAction) -> int | None:
    """The new row's key, or None when another request has just made the session.

    One statement: the ORM's `get_or_create` takes four, on the way of every first message.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {Session._meta.db_table} (tenant_id, key, agent_id, user_id)"
            " VALUES (%s, %s, %s, %s) ON CONFLICT (tenant_id, key) DO NOTHING RETURNING id",
            [current_tenant_id(), action.session_id, action.agent_id, action.user_id],
        )
        row = cursor.fetchone()
    return row[0] if row else None


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
