"""The worker's wrapper: claim, tenant scope, run, settle, callback. Every queued action passes here."""

from __future__ import annotations

import logging
import time
import uuid

from celery import Celery
from celery.exceptions import Reject
from django.db import OperationalError, connection, transaction

from core.actions.base import Settlement
from core.actions.bus import enqueue, execute
from core.actions.cancellation import watching
from core.actions.registry import all_handlers, build, handler_of
from core.errors import InternalError, NoobleError
from core.models import Task
from core.queues.names import HIGH
from core.tenancy import tenant_scope

logger = logging.getLogger(__name__)

AWAY_SECONDS = 1.0  # between tries while the database is away
SETTLE_TRIES = 30


def register_tasks(app: Celery) -> None:
    """One Celery task per queued action, bearing the action's name."""
    for handler in all_handlers():
        if handler.action.queue is not None:
            app.task(name=handler.action.verb)(run_task)


def run_task(task_id: str, tenant_id: str) -> None:
    """Run one task to its end. A message whose row is not claimable stops here, without effect.

    Killed before the claim: the message comes back. Killed after it: the row stays `processing`.
    """
    pk = uuid.UUID(task_id)
    with tenant_scope(tenant_id), watching(pk) as ours:
        task = _claim(pk, tenant_id) if ours else None
        if task is None:
            logger.info("task %s: nothing to claim", task_id)
            return
        _settle(task, _run(task))


def _claim(task_id: uuid.UUID, tenant_id: str) -> Task | None:
    try:
        return Task.claim(task_id, tenant_id)
    except OperationalError as error:
        logger.warning("task %s is not claimed, the database is away: %s", task_id, error)
        time.sleep(AWAY_SECONDS)
        raise Reject(error, requeue=True) from error


def _run(task: Task) -> Settlement:
    error: NoobleError
    try:
        action = build(task.action, task.payload)
        handler = handler_of(action)
        if handler.by_worker:
            settlement: Settlement = handler.function(action, task)
            return settlement
        result = execute(action)
        return Settlement(
            Task.Status.COMPLETED,
            result=result.model_dump(mode="json", exclude_unset=True) if result is not None else {},
        )
    except NoobleError as expected:
        error = expected
    except Exception:
        # The wall between one task and the worker that runs a hundred others.
        logger.exception("task %s (%s) failed", task.pk, task.action)
        error = InternalError()
    return Settlement(Task.Status.FAILED, error=error.as_dict())


def _settle(task: Task, settlement: Settlement) -> None:
    """Settle, also when the database is away for a moment: the answer exists only here."""
    for _ in range(SETTLE_TRIES - 1):
        try:
            return _settle_once(task, settlement)
        except OperationalError as error:
            logger.warning("task %s is settled later, the database is away: %s", task.pk, error)
            connection.close()
            time.sleep(AWAY_SECONDS)
    return _settle_once(task, settlement)


def _settle_once(task: Task, settlement: Settlement) -> None:
    """One transaction: the compare-and-set first, then what the run wrote, then its callback's row."""
    with transaction.atomic():
        status = task.settle(settlement.status, result=settlement.result, error=settlement.error)
        if status is None:
            logger.warning("task %s: attempt %s is not ours any more", task.pk, task.attempt)
            return
        settlement.write(status)
        # Before the callback's message: its handler tells the end of what is announced here.
        transaction.on_commit(lambda: settlement.announce(status), robust=True)
        enqueue_callback(task)


def enqueue_callback(task: Task) -> None:
    """Enqueue what was to follow the task's end; call it in the transaction that ends the task."""
    if task.callback is not None:
        callback = build(task.callback["action"], task.callback["payload"])
        enqueue(callback, priority=HIGH, parent=task, session_id=task.session_id)
