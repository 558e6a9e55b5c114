"""Named reads of conversations."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import F, Max
from django.db.models.functions import Coalesce

from conversations.errors import SessionNotFound
from conversations.models import Message, Session

_FIELDS = ("id", "role", "text", "task_id", "finish_reason", "created_at")
_STATUS = {"task_status": F("task__status")}


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
    question: int | None = (
        rows.filter(task_id=until_task, role=Message.Role.USER).values_list("pk", flat=True).first()
    )
    if question is None:
        return []
    columns = ("pk", "role", "text", "seq", "task_id")
    before = list(rows.filter(pk__lte=question).order_by("-pk").values_list(*columns)[:limit])
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
    session = Session.objects.filter(key=key).values_list("pk", flat=True).first()
    if session is None:
        raise SessionNotFound()
    rows = Message.objects.filter(session_id=session, seq__gte=from_seq, pk__gt=after).order_by("pk")
    return list(rows.values(*_FIELDS, **_STATUS)[:limit])


def latest_messages(key: str, from_seq: int, limit: int = 200) -> list[dict[str, Any]]:
    """The last `limit` of `session_messages`, in order, each with its `seq`; none without a session."""
    rows = Message.objects.filter(session__key=key, seq__gte=from_seq).order_by("-pk")
    return list(rows.values(*_FIELDS, "seq", **_STATUS)[:limit])[::-1]


def task_messages(task_id: uuid.UUID) -> list[dict[str, Any]]:
    """The question and, once it is there, the answer of the current tenant's task, each with its `seq`."""
    return list(Message.objects.filter(task_id=task_id).order_by("pk").values(*_FIELDS, "seq", **_STATUS))


def session_seq(key: str) -> int | None:
    """The highest seq that a message of the current tenant's session was written at; 0 for none.

    None when there is no such session. It looks at all of the session's messages: for when the log
    is lost.
    """
    rows = Session.objects.filter(key=key).annotate(last=Coalesce(Max("messages__seq"), 0))
    found: int | None = rows.values_list("last", flat=True).first()
    return found


def task_seq(task_id: uuid.UUID) -> int:
    """The highest seq that a message of the current tenant's task was written at; 0 for none."""
    return Message.objects.filter(task_id=task_id).aggregate(seq=Max("seq"))["seq"] or 0


def question_seq(task_id: uuid.UUID) -> int:
    """The seq that the question of the current tenant's task was written at; 0 when it has none."""
    rows = Message.objects.filter(task_id=task_id, role=Message.Role.USER)
    return rows.values_list("seq", flat=True).first() or 0
