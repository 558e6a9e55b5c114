"""The rules of the ground floor's verbs: tasks and API keys."""

from __future__ import annotations

import functools
import uuid
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from core.actions import cancellation
from core.actions.base import Action
from core.actions.bus import enqueue
from core.actions.keys import ApiKeyCreateAction, ApiKeyRevokeAction, CreatedKey
from core.actions.registry import build, handles
from core.actions.tasks import CancelledTask, RetriedTask, TaskCancelAction, TaskRetryAction
from core.actions.telling import tell_status
from core.actions.worker import follow_up
from core.errors import CannotCancel, CannotRetry, NotFound, TaskNotFound
from core.models import ApiKey, Task
from core.models.task import CLAIMABLE
from core.queues.names import Priority
from core.tenancy import current_tenant_id

CANCEL_TRIES = 3


@handles(TaskCancelAction, atomic=False)
def cancel(action: TaskCancelAction) -> CancelledTask:
    """A row first, then a hint: a task that waits is cancelled here, one that runs by its worker."""
    task = _task(action.task_id)
    for _ in range(CANCEL_TRIES):
        with transaction.atomic():
            unstarted = Task.cancel_unstarted(task.pk, action.by)
            if unstarted:
                follow_up(task)
        if unstarted:
            return CancelledTask(task_id=task.pk, status=Task.Status.CANCELLED)
        if not action.only_if_queued and Task.ask_to_cancel(task.pk, action.by):
            transaction.on_commit(functools.partial(_stop, task))
            return CancelledTask(task_id=task.pk, status=Task.Status.CANCELLING)
        task.refresh_from_db(fields=["status"])
        if task.status not in CLAIMABLE:
            break
        # Between the two its worker has given it back: it waits again.
    raise CannotCancel(task.status)


def _stop(task: Task) -> None:
    # First: once the run has ended, the log takes it no more.
    tell_status(task, Task.Status.CANCELLING, {})
    cancellation.hint(task.pk)


@handles(TaskRetryAction)
def retry(action: TaskRetryAction) -> RetriedTask:
    """The same work under a new id; whoever was to hear of the old task's end hears of the new one's."""
    task = _task(action.task_id)
    if not task.is_final:
        raise CannotRetry(task.status)

    waits = Task.line_up(task.serial_key) if task.serial_key else []
    again = enqueue(
        build(task.action, task.payload),
        priority=Priority(task.priority),
        callback=functools.partial(_callback, task) if task.callback is not None else None,
        agent_id=task.agent_id,
        session_id=task.session_id,
        serial_key=task.serial_key,
        behind=bool(waits),
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
