"""The rules of the ground floor's verbs: tasks and API keys."""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from typing import Any

import redis
from django.db import transaction
from django.db.models.functions import Now

from core import aio
from core.actions import cancellation
from core.actions.base import Action
from core.actions.bus import enqueue
from core.actions.keys import ApiKeyCreateAction, ApiKeyRevokeAction, CreatedKey
from core.actions.registry import build, handles
from core.actions.tasks import CancelledTask, RetriedTask, TaskCancelAction, TaskRetryAction
from core.actions.worker import enqueue_callback
from core.errors import CannotCancel, CannotRetry, NotFound, TaskNotFound
from core.events.log import append
from core.events.tasks import StatusUpdate, TaskStatusUpdate, envelope_of
from core.models import ApiKey, Task
from core.queues.names import Priority
from core.tenancy import current_tenant_id

logger = logging.getLogger(__name__)

TELLING_SECONDS = 1.0  # longer a slow log may not hold up the hint to the worker


@handles(TaskCancelAction, atomic=False)
def cancel(action: TaskCancelAction) -> CancelledTask:
    """A row first, then a hint: a task that waits is cancelled here, one that runs by its worker."""
    task = _task(action.task_id)
    with transaction.atomic():
        unstarted = Task.cancel_unstarted(task.pk, action.by)
        if unstarted:
            enqueue_callback(task)
    if unstarted:
        return CancelledTask(task_id=task.pk, status=Task.Status.CANCELLED)
    if not action.only_if_queued and Task.ask_to_cancel(task.pk, action.by):
        _tell_cancelling(task)  # first: once the run has ended, the log takes it no more
        cancellation.hint(task.pk)
        return CancelledTask(task_id=task.pk, status=Task.Status.CANCELLING)
    task.refresh_from_db(fields=["status"])
    raise CannotCancel(task.status)


def _tell_cancelling(task: Task) -> None:
    if task.callback is None:
        return  # nobody follows it: it is itself the callback of another
    data = StatusUpdate(status=Task.Status.CANCELLING, details={})
    try:
        event = TaskStatusUpdate(**envelope_of(task), data=data)
        aio.run(asyncio.wait_for(append(event), TELLING_SECONDS))
    except (redis.RedisError, OSError, TimeoutError):
        logger.warning("task %s: its session does not hear of the cancel: Valkey is away", task.pk)


@handles(TaskRetryAction)
def retry(action: TaskRetryAction) -> RetriedTask:
    """The same work under a new id; whoever was to hear of the old task's end hears of the new one's."""
    task = _task(action.task_id)
    if not task.is_final:
        raise CannotRetry(task.status)

    again = enqueue(
        build(task.action, task.payload),
        priority=Priority(task.priority),
        callback=functools.partial(_callback, task) if task.callback is not None else None,
        agent_id=task.agent_id,
        session_id=task.session_id,
        parent=task,
        retry_of=task,
    )
    return RetriedTask(task_id=again.pk, retry_of=task.pk)


def _callback(old: Task, task_id: uuid.UUID) -> Action[Any]:
    """The old task's callback for the new one: it names its task, and no other of its values is that id."""
    assert old.callback is not None
    own = str(old.pk)
    payload = old.callback["payload"]
    return build(
        old.callback["action"],
        {name: str(task_id) if value == own else value for name, value in payload.items()},
    )


def _task(task_id: uuid.UUID) -> Task:
    task: Task | None = Task.objects.filter(pk=task_id).first()
    if task is None:
        raise TaskNotFound()
    return task


@handles(ApiKeyCreateAction)
def create_key(action: ApiKeyCreateAction) -> CreatedKey:
    key = ApiKey(tenant_id=current_tenant_id(), name=action.name, scopes=list(action.scopes))
    text = key.mint()
    key.save()
    return CreatedKey(row_id=key.pk, key=text)


@handles(ApiKeyRevokeAction)
def revoke_key(action: ApiKeyRevokeAction) -> None:
    """Revoking twice keeps the first moment."""
    if not ApiKey.objects.filter(pk=action.row_id).exists():
        raise NotFound()
    ApiKey.objects.filter(pk=action.row_id, revoked_at=None).update(revoked_at=Now())
