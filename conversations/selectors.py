"""Named reads of conversations."""

from __future__ import annotations

import datetime
import re
import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import F, Max, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from conversations.actions import SessionResource
from conversations.errors import SessionNotFound
from conversations.models import Message, Session

_FIELDS = ("id", "role", "text", "task_id", "finish_reason", "created_at")
_STATUS = {"task_status": F("task__status")}

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
CURSOR_PATTERN = "^[0-9]{1,17}-[0-9]{1,18}$"
_cursor = re.compile(r"([0-9]{1,17})-([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as a run reads it; `seq` is the session's last when it was written."""

    role: str
    text: str
    seq: int


def session_history(session_row_id: int, until_task: uuid.UUID, limit: int = 200) -> list[Turn]:
    """The last `limit` messages up to the question of `until_task`, oldest first; none without it.

    Each answer follows its question, also where further questions were asked before it came.
    """
    rows = Message.objects.filter(session_id=session_row_id)
    asks = rows.filter(task_id=until_task, role=Message.Role.USER).values("pk")[:1]
    columns = ("pk", "role", "text", "seq", "task_id")
    before = list(rows.filter(pk__lte=Subquery(asks)).order_by("-pk").values_list(*columns)[:limit])
    if not before:
        return []
    question = before[0][0]
    asked = {task_id: pk for pk, role, *_, task_id in before if role == Message.Role.USER}
    # Answers that came after the question, to questions that were asked before it.
    late = rows.filter(pk__gt=question, role=Message.Role.ASSISTANT, task_id__in=asked.keys() - {until_task})

    def place(row: tuple[int, str, str, int, uuid.UUID]) -> tuple[int, int]:
        pk, role, _, _, task_id = row
        return (pk, 0) if role == Message.Role.USER else (asked.get(task_id, pk), 1)

    found = sorted([*before, *late.values_list(*columns)], key=place)
    return [Turn(*row[1:4]) for row in found[-limit:]]


def session_messages(key: str, from_seq: int, after: int, limit: int) -> list[dict[str, Any]]:
    """Messages of the current tenant's session written at `from_seq` or later, in order, after row `after`.

    Raises SessionNotFound.
    """
    session = _living().filter(key=key).values_list("pk", flat=True).first()
    if session is None:
        raise SessionNotFound()
    rows = Message.objects.filter(session_id=session, seq__gte=from_seq, pk__gt=after).order_by("pk")
    return list(rows.values(*_FIELDS, **_STATUS)[:limit])


def latest_messages(key: str, from_seq: int, limit: int = 200) -> list[dict[str, Any]]:
    """The last `limit` of `session_messages`, in order, each with its `seq`; none without a session."""
    rows = Message.objects.filter(session__key=key, session__deleted_at=None, seq__gte=from_seq).order_by(
        "-pk"
    )
    return list(rows.values(*_FIELDS, "seq", **_STATUS)[:limit])[::-1]


def task_messages(task_id: uuid.UUID) -> list[dict[str, Any]]:
    """The question and, once it is there, the answer of the current tenant's task, each with its `seq`."""
    return list(Message.objects.filter(task_id=task_id).order_by("pk").values(*_FIELDS, "seq", **_STATUS))


def session_seq(key: str) -> int | None:
    """The highest seq that a message of the current tenant's session was written at; 0 for none.

    None when there is no such session. It looks at all of the session's messages: for when the log
    is lost.
    """
    rows = _living().filter(key=key).annotate(last=Coalesce(Max("messages__seq"), 0))
    found: int | None = rows.values_list("last", flat=True).first()
    return found


def task_seq(task_id: uuid.UUID) -> int:
    """The highest seq that a message of the current tenant's task was written at; 0 for none."""
    return Message.objects.filter(task_id=task_id).aggregate(seq=Max("seq"))["seq"] or 0


def question_seq(task_id: uuid.UUID) -> int:
    """The seq that the question of the current tenant's task was written at; 0 when it has none."""
    rows = Message.objects.filter(task_id=task_id, role=Message.Role.USER)
    return rows.values_list("seq", flat=True).first() or 0


def session_get(key: str) -> Session:
    """A session of the current tenant. Raises SessionNotFound."""
    session: Session | None = _living().filter(key=key).first()
    if session is None:
        raise SessionNotFound()
    return session


@dataclass(frozen=True, slots=True)
class SessionCursor:
    """Where a page of sessions begins: behind this one."""

    created_at: datetime.datetime
    row_id: int

    def __str__(self) -> str:
        return f"{int((self.created_at - _EPOCH) / _MICROSECOND)}-{self.row_id}"

    @classmethod
    def of(cls, session: Session) -> SessionCursor:
        return cls(session.created_at, session.pk)

    @classmethod
    def parse(cls, text: str) -> SessionCursor | None:
        """None for what is no cursor of ours."""
        match = _cursor.fullmatch(text)
        return cls(_EPOCH + int(match[1]) * _MICROSECOND, int(match[2])) if match else None


def session_list(
    after: SessionCursor | None,
    limit: int,
    *,
    agent_id: uuid.UUID | None = None,
    user_id: str = "",
    state: str = "",
) -> list[Session]:
    """The current tenant's sessions, those that began last first, `limit` of them after the cursor."""
    rows = _living().order_by("-created_at", "-pk")
    if after is not None:
        # The first condition says nothing new, but an index can begin with it.
        older = Q(created_at__lt=after.created_at) | Q(created_at=after.created_at, pk__lt=after.row_id)
        rows = rows.filter(older, created_at__lte=after.created_at)
    if agent_id is not None:
        rows = rows.filter(agent_id=agent_id)
    if user_id:
        rows = rows.filter(user_id=user_id)
    if state:
        rows = rows.filter(state=state)
    return list(rows[:limit])


def session_resource(session: Session) -> SessionResource:
    """The session as the API shows it."""
    return SessionResource(
        session_id=session.key,
        agent_id=session.agent_id,
        state=session.state,
        title=session.title,
        user_info={"user_id": session.user_id, **session.user_info},
        context=session.context,
        created_at=session.created_at,
        last_active_at=session.last_active_at,
        ended_at=session.ended_at,
    )


def session_context(session_row_id: int) -> dict[str, str]:
    """The context variables of a session; none when it is gone."""
    found: dict[str, str] | None = (
        Session.objects.filter(pk=session_row_id).values_list("context", flat=True).first()
    )
    return found or {}


def _living() -> QuerySet[Session]:
    """Those that were not deleted."""
    rows: QuerySet[Session] = Session.objects.filter(deleted_at=None)
    return rows
