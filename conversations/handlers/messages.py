"""What every message goes through: its session is found or begun, and it is kept."""

from __future__ import annotations

import uuid

import orjson
from django.db import connection

from conversations.actions import (
    AppendedMessage,
    ConversationAppendAction,
    ConversationOpenAction,
    OpenedSession,
)
from conversations.errors import SessionBound, SessionClosed, SessionExpired
from conversations.models import Message, Session, SessionState
from core.actions.registry import handles
from core.errors import NoobleError
from core.tenancy import current_tenant_id

_TABLE = Session._meta.db_table

# Those whose state refuses a message. Their rows change for nothing: the error takes it back.
_REFUSALS: dict[str, type[NoobleError]] = {
    SessionState.CLOSED: SessionClosed,
    SessionState.EXPIRED: SessionExpired,
}


@handles(ConversationOpenAction)
def open_session(action: ConversationOpenAction) -> OpenedSession:
    """Two first messages at once make one session: the second waits for the first's commit.

    From here to the end of its transaction the message has the session for itself.
    """
    row_id, agent_id, state, created = _found_or_made(action)
    if agent_id != action.agent_id:
        raise SessionBound()
    if state in _REFUSALS:
        raise _REFUSALS[state]()
    return OpenedSession(row_id=row_id, created=created)


def _found_or_made(action: ConversationOpenAction) -> tuple[int, uuid.UUID, str, bool]:
    """The session's key, agent and state, and whether it is new; it is active from now on, if it is not over.

    One statement, on the way of every message. No column that it changes is in an index, unless it changes
    a state or tells an end user for the first time: the row stays where it is. A row that was there has an
    `xmax`, since it was locked before it was changed.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {_TABLE} AS session"
            " (tenant_id, key, agent_id, state, title, user_id, user_info, context)"
            " VALUES (%s, %s, %s, 'active', %s, %s, %s::jsonb, '{}')"
            " ON CONFLICT (tenant_id, key) DO UPDATE SET last_active_at = statement_timestamp(),"
            " state = CASE WHEN session.state IN ('created', 'idle') THEN 'active' ELSE session.state END,"
            " title = CASE WHEN session.title = '' THEN EXCLUDED.title ELSE session.title END,"
            " user_id = CASE WHEN session.user_id = '' THEN EXCLUDED.user_id ELSE session.user_id END,"
            " user_info = COALESCE(NULLIF(EXCLUDED.user_info, '{}'), session.user_info)"
            " RETURNING id, agent_id, state, xmax = 0",
            [
                current_tenant_id(),
                action.session_id,
                action.agent_id,
                action.title,
                action.user_id,
                orjson.dumps(action.user_info).decode(),
            ],
        )
        row: tuple[int, uuid.UUID, str, bool] = cursor.fetchone()
    return row


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
