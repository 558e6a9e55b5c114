"""The worker's wrapper: claim, tenant scope, run, settle, callback. Every queued action passes here."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
import uuid

from celery import Celery
from celery.exceptions import Reject
from django.conf import settings
from django.db import OperationalError, connection, transaction

from core import metrics
from core.actions import cancellation, heartbeat
from core.actions.base import Settlement
from core.actions.bus import enqueue, execute, publish_next
from core.actions.observed import observed
from core.actions.registry import all_handlers, build, handler_of
from core.actions.running import draining, running
from core.actions.telling import tell_status
from core.audit import Origin, asked_by
from core.errors import InternalError, NoobleError
from core.models import Task
from core.models.audit import AuditSource
from core.queues.names import HIGH
from core.tenancy import tenant_scope

logger = logging.getLogger(__name__)

AWAY_SECONDS = 1.0  # between tries while the database is away
AWAY_TRIES = 30
# Beyond the longest run: for its last frames and its settling while a service is away.
GRACE_SECONDS = 90.0


def register_tasks(app: Celery) -> None:
    """One Celery task per queued action, bearing the action's name."""
    for handler in all_handlers():
        if handler.action.queue is not None:
            app.task(name=handler.action.verb)(run_task)


def run_task(task_id: str, tenant_id: str) -> None:
    """Run one task to its end. A message whose row is not claimable stops here, without effect.

    Killed before the claim: the message comes back. Killed after it: the lease runs out, and the
    sweeper gives the task to the next worker.
    """
    pk = uuid.UUID(task_id)
    cancellation.listen()
    heartbeat.start()
    if draining.is_set():
        raise Reject("this worker takes no more tasks", requeue=True)
    origin = Origin(AuditSource.QUEUE, request_id=task_id)
    with tenant_scope(tenant_id), asked_by(origin), running(pk) as run:
        task = _claim(pk, tenant_id) if run is not None else None
        if run is None or task is None:
            logger.info("task %s: nothing to claim", task_id)
            return
        run.attempt = task.attempt
        with observed(task) as seen:
            seen.status = _settle(task, _run(task))
    if seen.status == Task.Status.QUEUED:
        raise Reject("another worker goes on", requeue=True)


def _claim(task_id: uuid.UUID, tenant_id: str) -> Task | None:
    try:
        return Task.claim(task_id, tenant_id, settings.TASK_TIMEOUT_SECONDS + GRACE_SECONDS)
    except OperationalError as error:
        logger.warning("task %s is not claimed, the database is away: %s", task_id, error)
        time.sleep(AWAY_SECONDS)
        raise Reject(error, requeue=True) from error


def _run(task: Task) -> Settlement:
    """What the handler comes to; done again while the database is away: a handler is safe to repeat."""
    error: NoobleError
    for tries_left in reversed(range(AWAY_TRIES)):
        try:
            return _run_once(task)
        except NoobleError as expected:
            error = expected
        except OperationalError as away:
            if tries_left:
                logger.warning("task %s waits, the database is away: %s", task.pk, away)
                connection.close()
                time.sleep(AWAY_SECONDS)
                continue
            logger.exception("task %s (%s) failed", task.pk, task.action)
            error = InternalError()
        except Exception:
            # The wall between one task and the worker that runs a hundred others.
            logger.exception("task %s (%s) failed", task.pk, task.action)
            error = InternalError()
        break
    return Settlement(Task.Status.FAILED, error=error.as_dict())


def _run_once(task: Task) -> Settlement:
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


def _settle(task: Task, settlement: Settlement) -> str | None:
    """Settle, also when the database is away for a moment: the answer exists only here."""
    for _ in range(AWAY_TRIES - 1):
        try:
            return settle(task, settlement)
        except OperationalError as error:
            logger.warning("task %s is settled later, the database is away: %s", task.pk, error)
            connection.close()
            time.sleep(AWAY_SECONDS)
    return settle(task, settlement)


def settle(task: Task, settlement: Settlement, *, crashed: bool = False) -> str | None:
    """One transaction: the compare-and-set first, then what the run wrote, then its callback's row.

    Returns the status that came of it, or None when the attempt is no longer ours. Killed after the
    commit: the callback tells what was not announced, and the sweeper publishes it.
    """
    with transaction.atomic():
        if settlement.status == Task.Status.QUEUED:
            if task.give_back():
                settlement.write(Task.Status.QUEUED)
                transaction.on_commit(functools.partial(tell_again, task, settlement.reason), robust=True)
                return Task.Status.QUEUED
            # Somebody cancelled it meanwhile, or it is not ours: the one or the other shows below.
            settlement = dataclasses.replace(settlement, status=Task.Status.FAILED)
        status = task.settle(
            settlement.status, result=settlement.result, error=settlement.error, crashed=crashed
        )
        if status is None:
            logger.warning("task %s: attempt %s is not ours any more", task.pk, task.attempt)
            return None
        settlement.write(status)
        transaction.on_commit(functools.partial(finished, task, status), robust=True)
        # Before the callback's message: its handler tells the end of what is announced here.
        transaction.on_commit(lambda: settlement.announce(status), robust=True)
        follow_up(task)
    return status


def tell_again(task: Task, reason: str) -> None:
    """The session hears that another attempt follows; the log takes nothing of this one any more."""
    metrics.ATTEMPTS.add(reason)
    attempt = task.attempt + 1
    tell_status(task, Task.Status.QUEUED, {"attempt": attempt, "reason": reason}, attempt)


def finished(task: Task, status: str) -> None:
    """A task has ended: after the commit."""
    metrics.FINISHED.add(task.action, status, tenant_id=task.tenant_id)


def follow_up(task: Task) -> None:
    """What comes after a task's end; call it in the transaction that ends the task.

    Its callback, and the next task of its serial key.
    """
    if task.callback is not None:
        callback = build(task.callback["action"], task.callback["payload"])
        enqueue(callback, priority=HIGH, parent=task, session_id=task.session_id)
    transaction.on_commit(functools.partial(publish_next, task.serial_key), robust=True)
