"""The two words of the platform: `execute` here and now, `enqueue` for a worker."""

from __future__ import annotations

import datetime
import functools
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

from django.db import DatabaseError, OperationalError, transaction
from django.db.models.functions import Now
from kombu.exceptions import OperationalError as BrokerError

from core import metrics, tracing
from core.actions.base import Action, ActionError, ActionResult, Result
from core.actions.registry import handler_of
from core.errors import InternalError, NoobleError, ServiceUnavailable
from core.ids import uuid7
from core.models import Task
from core.queues.names import Priority, QueueName
from core.queues.publisher import publish
from core.tenancy import current_tenant_id

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Result | None)

# So long a published task may wait for a worker before the sweeper asks the broker for its message.
UNCLAIMED = datetime.timedelta(seconds=3)


def execute(action: Action[R]) -> R:
    """Run the action's handler in this thread and return its result.

    Raises the handler's NoobleError. Atomic unless the handler says otherwise; an action executed
    inside another's transaction is part of it, and its error ends both.
    """
    handler = handler_of(action)
    if handler.by_worker:
        raise TypeError(f"{action.verb} is a worker's: enqueue it")
    with (
        tracing.span(action.verb),
        transaction.atomic(savepoint=False) if handler.atomic else nullcontext(),
    ):
        result: R = handler.function(action)
    return result


def answer(action: Action[Any]) -> tuple[ActionResult, NoobleError | None]:
    """Execute for an edge: the ActionResult in any case, and the error behind a failed one."""
    started = time.perf_counter()
    error: NoobleError | None = None
    result: Result | None = None
    try:
        result = execute(action)
    except NoobleError as expected:
        error = expected
    except OperationalError:
        logger.exception("%s: the database is away", action.verb)
        error = ServiceUnavailable()
    except Exception:
        # The last line of defence of an edge: the caller learns nothing, the log everything.
        logger.exception("%s failed", action.verb)
        error = InternalError()
    return (
        ActionResult(
            action_id=action.action_id,
            success=error is None,
            result=result.model_dump(mode="json", exclude_unset=True) if result is not None else None,
            error=ActionError(**error.as_dict()) if error is not None else None,
            execution_time=round(time.perf_counter() - started, 6),
        ),
        error,
    )


def enqueue(
    action: Action[Any],
    *,
    priority: Priority | None = None,
    callback: Callable[[uuid.UUID], Action[Any]] | None = None,
    agent_id: uuid.UUID | None = None,
    session_id: str = "",
    serial_key: str = "",
    behind: bool = False,
    parent: Task | None = None,
    retry_of: Task | None = None,
) -> Task:
    """Write the action as a task of the current tenant; it is published after the commit.

    `callback`, made from the task's id, is kept with it and enqueued in the transaction that settles it.
    `priority` counts inside the tenant only. `parent` gives the task its root. Tasks of one
    `serial_key` run one at a time, in the order in which they were enqueued: unless nobody else can
    know the key yet, call `Task.line_up` first, in the same transaction, and say whether there are
    open tasks that this one waits `behind`.

    Killed after the commit: the sweeper publishes the task.
    """
    if action.queue is None:
        raise TypeError(f"{action.verb} has no queue")
    tenant_id = current_tenant_id()
    domain, verb = action.queue
    priority = action.default_priority if priority is None else priority
    task_id = uuid7()
    follow = callback(task_id) if callback else None
    asked = tracing.current()
    task: Task = Task.unscoped.create(
        id=task_id,
        global_task_id=parent.global_task_id if parent else task_id,
        tenant_id=tenant_id,
        action=action.verb,
        payload=action.payload(),
        callback={"action": follow.verb, "payload": follow.payload()} if follow else None,
        queue=str(QueueName(domain, tenant_id, verb, priority.word)),
        priority=priority,
        agent_id=agent_id,
        session_id=session_id,
        serial_key=serial_key,
        due_at=Now() + UNCLAIMED,
        retry_of=retry_of,
        traceparent=asked.trace.header if asked else parent.traceparent if parent else "",
        request_id=asked.request_id if asked else parent.request_id if parent else "",
    )
    transaction.on_commit(functools.partial(_accepted, task, behind))
    return task


def _accepted(task: Task, behind: bool) -> None:
    """After the commit."""
    metrics.ACCEPTED.add(task.action, tenant_id=task.tenant_id)
    if behind:
        publish_next(task.serial_key)
    else:
        publish_task(task)


def publish_next(serial_key: str) -> None:
    """Publish the first task of the key, if it still waits for that; call it when one has ended.

    After the commit: whoever lines up behind a task either sees it ended, or is seen here.
    """
    if not serial_key:
        return
    try:
        first = Task.next_of(serial_key)
    except DatabaseError as error:
        logger.warning("%s: its next task is published later: %s", serial_key, error)
        return
    if first is not None:
        publish_task(first)


def publish_task(task: Task) -> None:
    """Hand the task to the broker. It stays `pending` when the broker is away."""
    try:
        publish(task.action, task.pk, task.tenant_id, QueueName.parse(task.queue))
    except BrokerError:
        logger.warning("task %s waits: the broker is away", task.pk)
        return
    try:
        queued = Task.mark_queued(task.pk)
    except DatabaseError as error:
        # The message is on its way and the row can be claimed as it is: nothing is lost but the word.
        logger.warning("task %s is not marked as queued: %s", task.pk, error)
        return
    if queued:
        task.status = Task.Status.QUEUED
