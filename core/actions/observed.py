"""What can be seen of a task's attempt: its place in the trace, its spans, counts, a line of the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import structlog

from core import metrics, tracing
from core.models import Task

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Seen:
    """An attempt. `waited` and what comes of it in seconds: from the task's row to its claim."""

    waited: float
    claimed_at: float  # of the monotonic clock
    status: str | None = None  # what it came to; None: the attempt was not ours any more


_seen: ContextVar[Seen | None] = ContextVar("seen", default=None)


def of_task(task: Task) -> AbstractContextManager[None]:
    """What is inside is done for the task, in the trace of whoever asked for it."""
    return tracing.context(task.traceparent, request_id=task.request_id, task_id=str(task.pk))


@contextmanager
def observed(task: Task) -> Iterator[Seen]:
    """Around what a worker does for a task that it has just claimed. Whoever settles it sets `status`."""
    assert task.started_at is not None
    # Both by the database's clock.
    waited = (task.started_at - task.created_at).total_seconds()
    seen = Seen(waited, time.monotonic())
    domain = task.queue.partition(":")[0]
    if task.attempt == 1:
        metrics.WAITED_SECONDS.observe(waited, domain)
    token = _seen.set(seen)
    try:
        with of_task(task):
            now = time.time()
            tracing.record("queue", now - waited, now, **{"messaging.destination.name": domain})
            attributes = {"nooble.tenant": task.tenant_id, "nooble.attempt": task.attempt}
            with tracing.span(task.action, "consumer", **{"nooble.task": str(task.pk)}, **attributes) as span:
                yield seen
                if span is not None:
                    span.set(**{"nooble.status": seen.status or "lost"})
            _tell(task, seen)
    finally:
        _seen.reset(token)


def _tell(task: Task, seen: Seen) -> None:
    ran = time.monotonic() - seen.claimed_at
    metrics.RUN_SECONDS.observe(ran, task.action)
    log.info(
        "task",
        action=task.action,
        attempt=task.attempt,
        status=seen.status or "lost",
        waited_ms=round(seen.waited * 1000, 1),
        ms=round(ran * 1000, 1),
    )


def first_token() -> None:
    """The present run has got the first token of its answer. In a context that `observed` began."""
    seen = _seen.get()
    if seen is not None:
        metrics.FIRST_TOKEN_SECONDS.observe(seen.waited + time.monotonic() - seen.claimed_at)
