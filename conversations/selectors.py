"""Named reads of conversations."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import Max
from django.db.models.functions import Coalesce

from conversations.errors import SessionNotFound
from conversations.models import Message, Session


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as a run reads it; `seq` is the session's last when it was written."""

    role: str
    text: str
    seq: int


def session_history(session_row_id: int, until_task: uuid.UUID, limit: int = 200) -> list[Turn]:
    """The last `limit` messages up to the question of `until_task`, oldest first."""
    question = Message.objects.filter(task_id=until_task, role=Message.Role.USER).values("pk")
    # What came after the question belongs to later runs.
    rows = Message.objects.filter(session_id=session_row_id, pk__lte=question).order_by("-pk")
    return [Turn(*row) for row in rows.values_list("role", "text", "seq")[:limit]][::-1]


def session_messages(key: str, from_seq: int, after: int, limit: int) -> list[dict[str, Any]]:
    """Messages of the current tenant's session written at `from_seq` or later, in order, after row `after`.

    Raises SessionNotFound.
    """
    session = Session.objects.filter(key=key).values_list("pk", flat=True).first()
    if session is None:
        raise SessionNotFound()
    rows = Message.objects.filter(session_id=session, seq__gte=from_seq, pk__gt=after).order_by("pk")
    return list(rows.values("id", "role", "text", "task_id", "finish_reason", "created_at")[:limit])


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
