"""What provider calls consume: one row a call, written before it begins and again when it has ended."""

from __future__ import annotations

import uuid
from typing import Any

from core.models import UsageRecord


def open_call(task_id: uuid.UUID, attempt: int, call: int, **known: Any) -> None:
    """A call follows; `known` are its other fields. Killed afterwards, it stays `unknown`.

    An attempt that is begun again, since the database was away, has the row already.
    """
    row = UsageRecord(task_id=task_id, attempt=attempt, call=call, **known)
    UsageRecord.objects.bulk_create([row], ignore_conflicts=True)


def close_call(task_id: uuid.UUID, attempt: int, call: int, **taken: Any) -> None:
    """The call has ended; `taken` are its tokens and how accurate they are."""
    UsageRecord.objects.filter(task_id=task_id, attempt=attempt, call=call).update(**taken)


def forget_call(task_id: uuid.UUID, attempt: int, call: int) -> None:
    """The call was never made."""
    UsageRecord.objects.filter(task_id=task_id, attempt=attempt, call=call).delete()
