"""What a client gets in place of events that the log has lost."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, ParamSpec, TypeVar

from conversations.models import Message
from conversations.selectors import latest_messages, session_seq, task_messages
from core.events import log
from core.events.base import control
from core.events.groups import log_name, session_name
from core.events.log import RunningAnswer
from core.tenancy import tenant_scope
from orchestrator.selectors import task_is_open
from orchestrator.serializers import MessageItem
from orchestrator.threads import call_in

P = ParamSpec("P")
T = TypeVar("T")
Rows = list[dict[str, Any]]

LOOKS = 3

# Reads of the database for those who wait on the event loop: bounded.
_threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="snapshot")


async def snapshot(tenant_id: str, session_id: str, from_seq: int) -> tuple[str, int]:
    """The control message `snapshot`, and the seq after which the live events follow it.

    It holds the newest messages that `from_seq` opens, and of the answer that is under way the text so
    far. Raises django's OperationalError, redis.RedisError, OSError.
    """
    return await _snapshot(tenant_id, session_id, partial(latest_messages, session_id, from_seq))


async def task_snapshot(tenant_id: str, session_id: str, task_id: uuid.UUID) -> tuple[str, int]:
    """`snapshot` with the messages of one task, and with its answer only.

    A task without a session has none: what was said stands in its row.
    """
    return await _snapshot(tenant_id, session_id, partial(task_messages, task_id), task_id)


async def _snapshot(
    tenant_id: str, session_id: str, messages: Callable[[], Rows], task_id: uuid.UUID | None = None
) -> tuple[str, int]:
    name = log_name(tenant_id, session_id, task_id)
    looks = 0
    while True:
        # The log first: what the database gains after that is told after this tail, too.
        running, tail = await log.running_answer(name)
        if running is not None and task_id not in (None, running.task_id):
            running = None
        if tail is None and await in_thread(_revive, tenant_id, session_id):
            continue
        tail = tail or 0
        rows, is_under_way = await in_thread(_read, tenant_id, messages, running)
        newest = max((row["seq"] for row in rows), default=0)
        if newest <= tail:
            break
        # An answer was settled in between, and its last words would follow once more: look again.
        looks += 1
        if looks == LOOKS:
            # No: the log came back without its end.
            await in_thread(log.revive, name, newest)
    data = {
        "messages": [MessageItem(**row).model_dump(mode="json") for row in rows],
        "running": asdict(running) if running is not None and is_under_way else None,
        "last_seq": tail,
    }
    return control("snapshot", data), tail


def _revive(tenant_id: str, session_id: str) -> bool:
    """Begin the log of a session anew; False when there is no such session."""
    with tenant_scope(tenant_id):
        floor = session_seq(session_id)
    if floor is not None:
        log.revive(session_name(tenant_id, session_id), floor)
    return floor is not None


def _read(tenant_id: str, messages: Callable[[], Rows], running: RunningAnswer | None) -> tuple[Rows, bool]:
    """The messages, and whether the running answer is not among them and still to come."""
    with tenant_scope(tenant_id):
        if running is None:
            return messages(), False
        # The task first: once it is settled, its answer is a message.
        is_open = task_is_open(running.task_id)
        rows = messages()
    answers = {row["task_id"] for row in rows if row["role"] == Message.Role.ASSISTANT}
    return rows, is_open and running.task_id not in answers


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what touches the database, in one of a few threads."""
    return await call_in(_threads, function, *args, **kwargs)
