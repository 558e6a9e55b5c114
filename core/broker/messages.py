"""What the broker has of tasks: their messages, found by the task's id (Celery's correlation id)."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterable

from core import valkey
from core.broker.scripts import ROOT, Scripts

SLICE = 500  # ids in one script: it holds up everybody


@functools.cache
def _scripts() -> Scripts:
    return Scripts(valkey.client())


def absent(task_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Those of the tasks whose message neither waits nor is leased. Raises redis.RedisError."""
    ids = [str(task_id) for task_id in task_ids]
    found: set[uuid.UUID] = set()
    for start in range(0, len(ids), SLICE):
        answer = _scripts().absent(args=[ROOT, *ids[start : start + SLICE]])
        found.update(uuid.UUID(spelled.decode()) for spelled in answer)
    return found


def drop(task_id: uuid.UUID) -> bool:
    """End the lease of the task's message, whose work is nobody's any more. Raises redis.RedisError."""
    return bool(_scripts().drop(args=[ROOT, str(task_id)]))
