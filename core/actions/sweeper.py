"""Who finishes what a crash has left: a thread in every worker process, one at a time by a lock.

It needs the database only: it must run while the broker is down.
"""

from __future__ import annotations

import datetime
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from django.conf import settings
from django.db import OperationalError, close_old_connections, connection, transaction
from django.db.models import Case, DurationField, F, Q, QuerySet, When
from django.db.models.functions import Greatest, Least, Now

from core.actions.base import Settlement
from core.actions.bus import UNCLAIMED, publish_task
from core.actions.observed import of_task
from core.actions.registry import build, handler_of
from core.actions.worker import settle, tell_again
from core.away import DATABASE_AWAY
from core.broker import messages
from core.errors import DeadlineExceeded, NoobleError, Poison
from core.leases import LEASE_SECONDS, RENEW_SECONDS
from core.models import Task
from core.models.task import CLAIMABLE, RUNNING
from core.tenancy import across_tenants, tenant_scope

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = (0, 2, 8, 30)  # before the next attempt, by the crashes so far
MOST_CRASHES = len(BACKOFF_SECONDS) + 1
SLICE = 500
# While the database was away nobody could renew a lease: all have a round before any is taken.
PATIENCE_SECONDS = 2.0 * RENEW_SECONDS
PUBLISH_SECONDS = 1.0  # of a turn: what is left waits for the next one
CHORE_SECONDS = 600.0
LEFTOVER_SECONDS = 30.0
# A message that was sent is looked for again when its task has waited twice as long, up to this: a
# hundred thousand rows that wait are not to be written every few seconds.
SELDOM = datetime.timedelta(seconds=30)
_PAUSE = Case(
    When(status=Task.Status.QUEUED, then=Least(Greatest(Now() - F("created_at"), UNCLAIMED), SELDOM)),
    default=UNCLAIMED,
    output_field=DurationField(),
)
_LOCK = 0x6E6F6F62  # of PostgreSQL's advisory locks, which are numbers

# What else is to be cleaned up now and then, and what somebody misses meanwhile; set by the roof.
chores: list[Callable[[], Any]] = []
leftovers: list[Callable[[], Any]] = []

_thread: threading.Thread | None = None


def start(**_: Any) -> None:
    """Sweep from now on; a signal of Celery calls it when a worker begins."""
    global _thread
    if _thread is None:
        _thread = threading.Thread(target=Sweeper().sweep_forever, name="sweeper", daemon=True)
        _thread.start()


class Sweeper:
    """One a process."""

    def __init__(self) -> None:
        self._patient_until = time.monotonic() + PATIENCE_SECONDS
        self._turned_at = time.monotonic()
        self._chores_at = time.monotonic() + CHORE_SECONDS
        self._leftovers_at = time.monotonic() + LEFTOVER_SECONDS

    def sweep_forever(self) -> None:
        pause = threading.Event()
        while not pause.wait(settings.WORKER_SLEEP_SECONDS):
            try:
                self.sweep()
            except DATABASE_AWAY as error:
                logger.warning("nothing is swept: %s", error)
                connection.close()
                self._be_patient()
            except Exception:
                logger.exception("nothing is swept")
            finally:
                close_old_connections()

    @across_tenants()
    def sweep(self) -> None:
        """One turn. Raises what the database raises."""
        begun = time.monotonic()
        if begun - self._turned_at > settings.WORKER_SLEEP_SECONDS + RENEW_SECONDS:
            self._be_patient()  # this process stood still
        # First: what waits may be much.
        if begun >= self._patient_until:
            end_abandoned()
        publish_due()
        if begun >= self._leftovers_at:
            self._leftovers_at = begun + LEFTOVER_SECONDS
            for leftover in leftovers:
                leftover()
        if begun >= self._chores_at:
            self._chores_at = begun + CHORE_SECONDS
            for chore in chores:
                chore()
        self._turned_at = time.monotonic()

    def _be_patient(self) -> None:
        self._patient_until = time.monotonic() + PATIENCE_SECONDS
        self._turned_at = time.monotonic()


def _looked_up(find: Callable[[], list[Any]]) -> list[Any]:
    """What is found, if this transaction is the one that sweeps.

    Raises OperationalError where the database stood still meanwhile: nobody could renew a lease.
    """
    begun = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_LOCK])
        found = find() if cursor.fetchone()[0] else []
    if time.monotonic() - begun > RENEW_SECONDS:
        raise OperationalError("the database stood still")
    return found


def publish_due() -> None:
    """Publish again what no worker has claimed and the broker does not have; for a second or so.

    Killed in between: they are due again in a few seconds.
    """
    begun = time.monotonic()
    while True:
        with transaction.atomic():
            due = _looked_up(_take_due)
        first = {task.pk: task for task in due if task.is_first}
        try:
            absent = messages.absent(first)
        except redis.RedisError as error:
            logger.warning("%s tasks wait: the broker is away: %s", len(first), error)
            return
        for task_id in absent:
            logger.warning("task %s: the broker has no message of it, one is sent", task_id)
            try:
                publish_task(first[task_id])
            except Exception:
                logger.exception("task %s is not published", task_id)
        if len(due) < SLICE or time.monotonic() - begun > PUBLISH_SECONDS:
            return


def _take_due() -> list[Any]:
    """What is due, each with `is_first`: whether no earlier task of its serial key is open."""
    due: QuerySet[Task] = Task.unscoped.filter(status__in=CLAIMABLE, due_at__lte=Now()).order_by("due_at")
    due = due.select_for_update(skip_locked=True).annotate(is_first=Task.is_first_of_its_key())
    found = list(due.only("pk", "action", "tenant_id", "queue", "status")[:SLICE])
    Task.unscoped.filter(pk__in=[task.pk for task in found]).update(due_at=Now() + _PAUSE)
    return found


def end_abandoned() -> int:
    """Take from their workers the tasks whose lease has run out, or whose time is over; how many."""
    ended = 0
    while True:
        with transaction.atomic():
            found = _looked_up(_find_abandoned)
            for task in found:
                try:
                    with tenant_scope(task.tenant_id), of_task(task), transaction.atomic():
                        _end(task)
                except DATABASE_AWAY:
                    raise
                except Exception:
                    logger.exception("task %s cannot be taken from its worker", task.pk)
                    _put_off(task)
        ended += len(found)
        if len(found) < SLICE:
            return ended


def _put_off(task: Task) -> None:
    """It is tried again later: here it keeps the others waiting."""
    later = Now() + datetime.timedelta(seconds=LEASE_SECONDS)
    Task.unscoped.filter(pk=task.pk).update(lease_until=later, deadline=later)


def _find_abandoned() -> list[Any]:
    """Locked: a worker that renews its lease just now waits, and finds that it is too late."""
    lease_is_over = Q(lease_until__lt=Now())
    rows: QuerySet[Task] = Task.unscoped.filter(lease_is_over | Q(deadline__lt=Now()), status__in=RUNNING)
    rows = rows.annotate(lease_is_over=lease_is_over).order_by("lease_until")
    return list(rows.select_for_update(skip_locked=True)[:SLICE])


def _end(task: Any) -> None:
    """In a transaction. What the worker says of the task afterwards finds another attempt."""
    left = _left_of(task)
    crashed = task.lease_is_over
    # The message's slot goes back now; the next attempt gets a message of its own.
    transaction.on_commit(functools.partial(_drop, task), robust=True)
    error: NoobleError | None = None
    if not crashed:
        error = DeadlineExceeded()
    elif task.crashes + 1 >= MOST_CRASHES:
        error = Poison()
    if error is not None or task.status == Task.Status.CANCELLING:
        logger.warning(
            "task %s, attempt %s: %s", task.pk, task.attempt, error or "cancelled without a worker"
        )
        ending = error.as_dict() if error is not None else None
        result = left.result if task.status == Task.Status.CANCELLING else None
        end = Settlement(Task.Status.FAILED, result=result, error=ending, write=left.write)
        settle(task, end, crashed=crashed)
        return
    pause = BACKOFF_SECONDS[task.crashes]
    if task.give_back(crashed=True, seconds=pause):
        logger.warning("task %s: the worker of attempt %s is lost", task.pk, task.attempt)
        left.write(Task.Status.QUEUED)
        transaction.on_commit(functools.partial(tell_again, task, "worker_lost"), robust=True)


def _left_of(task: Task) -> Settlement:
    """What the dead attempt has left behind, as its handler knows it."""
    nothing = Settlement(Task.Status.FAILED)
    try:
        action = build(task.action, task.payload)
        abandoned = handler_of(action).abandoned
        return abandoned(action, task) if abandoned else nothing
    except DATABASE_AWAY:
        raise
    except Exception:
        logger.exception("task %s: nobody knows what its attempt %s has left", task.pk, task.attempt)
        return nothing


def _drop(task: Task) -> None:
    try:
        messages.drop(task.pk)
    except redis.RedisError as error:
        logger.warning("task %s: its message is dropped later: %s", task.pk, error)
