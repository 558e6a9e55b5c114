"""What provider calls consume: one row a call, written before it begins and again when it has ended."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import connection

from core.models import Task, UsageRecord


def open_call(
    task: Task, call: int, *, agent_id: uuid.UUID, session_id: str, end_user: str, provider: str, model: str
) -> None:
    """A call of the task's attempt follows. Killed afterwards, its row stays `unknown`.

    An attempt that is begun again, since the database was away, has the row already.
    """
    known = (task.tenant_id, task.pk, task.attempt, call, agent_id, session_id, end_user, provider, model)
    with connection.cursor() as cursor:
        # One statement: the ORM's insert that ignores conflicts is a transaction, on the way of every run.
        cursor.execute(
            f"INSERT INTO {UsageRecord._meta.db_table} (tenant_id, task_id, attempt, call, agent_id,"
            " session_id, end_user, provider, model, accuracy, prompt_tokens, completion_tokens,"
            " cached_tokens, created_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, 'unknown', 0, 0, 0, now())"
            " ON CONFLICT (task_id, attempt, call) DO NOTHING",
            known,
        )


def close_call(task: Task, call: int, **taken: Any) -> None:
    """The call has ended; `taken` are its tokens and how accurate they are."""
    UsageRecord.objects.filter(task=task, attempt=task.attempt, call=call).update(**taken)


def forget_call(task: Task, call: int) -> None:
    """The call was never made."""
    UsageRecord.objects.filter(task=task, attempt=task.attempt, call=call).delete()
