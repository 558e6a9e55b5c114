"""The rules of the ground floor's verbs: tasks, API keys, tiers and tenants."""

from __future__ import annotations

import functools
import uuid
from typing import Any

from django.db import transaction
from django.db.models.functions import Now
from pydantic import BaseModel

from core import outbox
from core.actions import cancellation
from core.actions.base import Action
from core.actions.bus import enqueue
from core.actions.keys import ApiKeyCreateAction, ApiKeyRevokeAction, CreatedKey
from core.actions.notices import NoticeRelayAction
from core.actions.registry import build, handles
from core.actions.tasks import CancelledTask, RetriedTask, TaskCancelAction, TaskRetryAction
from core.actions.telling import tell_status
from core.actions.tiers import (
    TenantCreateAction,
    TenantFields,
    TenantUpdateAction,
    TierCreateAction,
    TierDeleteAction,
    TierFields,
    TierUpdateAction,
)
from core.actions.worker import follow_up
from core.audit import record
from core.errors import CannotCancel, CannotRetry, Conflict, NotFound, TaskNotFound, TenantNotFound
from core.models import ApiKey, Task, Tenant, Tier
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
    record(
        action.verb,
        "api_key",
        key.pk,
        tenant_id=key.tenant_id,
        before={},
        after={"name": key.name, "prefix": key.prefix, "scopes": key.scopes},
    )
    return CreatedKey(row_id=key.pk, key=text)


@handles(ApiKeyRevokeAction)
def revoke_key(action: ApiKeyRevokeAction) -> None:
    """Revoking twice keeps the first moment."""
    if not ApiKey.objects.filter(pk=action.row_id).exists():
        raise NotFound()
    if ApiKey.objects.filter(pk=action.row_id, revoked_at=None).update(revoked_at=Now()):
        before, after = {"revoked": False}, {"revoked": True}
        tenant_id = current_tenant_id()
        record(action.verb, "api_key", action.row_id, tenant_id=tenant_id, before=before, after=after)


@handles(TierCreateAction)
def create_tier(action: TierCreateAction) -> None:
    fields = _fields(action, TierFields)
    _, created = Tier.objects.get_or_create(slug=action.slug, defaults=fields)
    if not created:
        raise Conflict(details={"slug": action.slug})
    record(action.verb, "tier", action.slug, tenant_id=None, before={}, after=fields)


@handles(TierUpdateAction)
def update_tier(action: TierUpdateAction) -> None:
    """What tenants have that no longer fits stays as it is: only what is new is measured by the tier."""
    tier = Tier.objects.select_for_update(no_key=True).filter(pk=action.slug).first()
    if tier is None:
        raise NotFound()
    fields = _fields(action, TierFields)
    before = {name: getattr(tier, name) for name in fields}
    for name, value in fields.items():
        setattr(tier, name, value)
    tier.save()
    record(action.verb, "tier", action.slug, tenant_id=None, before=before, after=fields)


@handles(TierDeleteAction)
def delete_tier(action: TierDeleteAction) -> None:
    tier = Tier.objects.select_for_update().filter(pk=action.slug).first()
    if tier is None:
        raise NotFound()
    if tier.tenants.exists():
        raise Conflict(details={"tenants": tier.tenants.count()})
    before = {name: getattr(tier, name) for name in TierFields.model_fields}
    tier.delete()
    record(action.verb, "tier", action.slug, tenant_id=None, before=before, after={})


@handles(TenantCreateAction)
def create_tenant(action: TenantCreateAction) -> None:
    tier = _tier(action.tier)
    _, created = Tenant.objects.get_or_create(
        id=action.tenant_id, defaults={"name": action.name, "tier": tier}
    )
    if not created:
        raise Conflict(details={"id": action.tenant_id})
    after = _fields(action, TenantFields)
    record(action.verb, "tenant", action.tenant_id, tenant_id=action.tenant_id, before={}, after=after)


@handles(TenantUpdateAction)
def update_tenant(action: TenantUpdateAction) -> None:
    tenant = Tenant.objects.select_for_update(no_key=True).filter(pk=action.tenant_id).first()
    if tenant is None:
        raise TenantNotFound()
    before = {"name": tenant.name, "tier": tenant.tier_id}
    tenant.name, tenant.tier = action.name, _tier(action.tier)
    tenant.save()
    after = _fields(action, TenantFields)
    record(action.verb, "tenant", tenant.pk, tenant_id=tenant.pk, before=before, after=after)


def _tier(slug: str) -> Tier:
    tier = Tier.objects.filter(pk=slug).first()
    if tier is None:
        raise NotFound(details={"tier": slug})
    return tier


def _fields(action: Action[Any], shape: type[BaseModel]) -> dict[str, Any]:
    """The action's values of the shape's fields, as rows keep them."""
    return action.model_dump(mode="json", include=set(shape.model_fields))


@handles(NoticeRelayAction)
def relay_notices(action: NoticeRelayAction) -> None:
    """Done twice, it finds nothing the second time."""
    outbox.relay(action.subject)
