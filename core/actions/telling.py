"""Telling a task's session that it moved without having ended."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import redis

from core import aio
from core.events.log import append
from core.events.tasks import AttemptFollows, StatusUpdate, TaskStatusUpdate, envelope_of
from core.models import Task

logger = logging.getLogger(__name__)

TELLING_SECONDS = 1.0  # longer a slow log may not hold up what follows


def tell_status(task: Task, status: str, details: dict[str, Any], attempt: int | None = None) -> None:
    """One `task_status_update`; an `attempt` follows: the log takes nothing of an earlier one any more.

    Tried once: the row is the truth, and an end is told in any case.
    """
    if task.callback is None:
        return  # nobody follows it: it is itself the callback of another
    data = StatusUpdate(status=status, details=details)
    kind = TaskStatusUpdate if attempt is None else AttemptFollows
    event = kind(**envelope_of(task), data=data)
    try:
        aio.run(asyncio.wait_for(append(event, attempt), TELLING_SECONDS))
    except (redis.RedisError, OSError, TimeoutError):
        logger.warning("task %s: its session does not hear that it is %s: Valkey is away", task.pk, status)
