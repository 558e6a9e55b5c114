"""The rules of the ground floor's verbs: tasks, API keys, people, tiers and tenants."""

from __future__ import annotations

import functools
import uuid
from typing import Any

from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext
from pydantic import BaseModel

from core import outbox
from core.actions import cancellation
from core.actions.base import Action
from core.actions.bus import enqueue
from core.actions.end_users import (
    EndUserSecretCreateAction,
    EndUserSecretResource,
    EndUserSecretRevokeAction,
)
from core.actions.keys import ApiKeyCreateAction, ApiKeyRevokeAction, CreatedKey
from core.actions.notices import NoticeRelayAction
from core.actions.people import (
    KeptMembership,
    MembershipCreateAction,
    MembershipDeleteAction,
    MembershipUpdateAction,
)
from core.actions.prices import PriceSetAction, PriceWithdrawAction, SetPrice
from core.actions.registry import build, handles
from core.actions.suspension import TenantStopRunsAction, TenantSuspendAction, TenantUnsuspendAction
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
from core.actions.worker import finished, follow_up
from core.audit import record
from core.errors import CannotCancel, CannotRetry, Conflict, NotFound, TaskNotFound, TenantNotFound
from core.events.publisher import tell_access
from core.models import ApiKey, EndUserSecret, Membership, ModelPrice, Task, Tenant, Tier
from core.models.task import CLAIMABLE
from core.queues.names import Priority
from core.selectors import end_user_secret_resource, signing_changed, tenant_changed
from core.suspension import stop_runs
from core.tenancy import current_tenant_id, tenant_scope

CANCEL_TRIES = 3
# Of a price, what people say.
PRICED = ("provider", "model", "from_prompt_tokens", "prompt", "completion", "cached")
MOST_SECRETS = 10  # living end-user secrets of a tenant: each is tried with a token that names none


@handles(TaskCancelAction, atomic=False)
def cancel(action: TaskCancelAction) -> CancelledTask:
    """A row first, then a hint: a task that waits is cancelled here, one that runs by its worker."""
    task = _task(action.task_id)
    for _ in range(CANCEL_TRIES):
        with transaction.atomic():
            unstarted = Task.cancel_unstarted(task.pk, action.by)
            if unstarted:
                transaction.on_commit(functools.partial(finished, task, Task.Status.CANCELLED), robust=True)
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


@handles(EndUserSecretCreateAction)
def create_end_user_secret(action: EndUserSecretCreateAction) -> EndUserSecretResource:
    """Raises Conflict beyond as many as rotation can need."""
    Tenant.objects.select_for_update(no_key=True).get(pk=current_tenant_id())
    if EndUserSecret.objects.filter(revoked_at=None).count() >= MOST_SECRETS:
        raise Conflict(details={"limit": MOST_SECRETS})
    secret = EndUserSecret(tenant_id=current_tenant_id(), name=action.name)
    text = secret.mint()
    secret.save()
    after = {"name": secret.name, "prefix": secret.prefix}
    record(action.verb, "end_user_secret", secret.prefix, tenant_id=secret.tenant_id, before={}, after=after)
    return end_user_secret_resource(secret, text)


@handles(EndUserSecretRevokeAction)
def revoke_end_user_secret(action: EndUserSecretRevokeAction) -> None:
    """Revoking twice keeps the first moment."""
    rows = EndUserSecret.objects.filter(prefix=action.secret_id)
    if not rows.exists():
        raise NotFound()
    if rows.filter(revoked_at=None).update(revoked_at=Now(), encrypted=""):
        tenant_id = current_tenant_id()
        before, after = {"revoked": False}, {"revoked": True}
        record(
            action.verb, "end_user_secret", action.secret_id, tenant_id=tenant_id, before=before, after=after
        )
        transaction.on_commit(functools.partial(signing_changed, tenant_id))
        transaction.on_commit(functools.partial(tell_access, tenant_id))


@handles(MembershipCreateAction)
def create_membership(action: MembershipCreateAction) -> KeptMembership:
    """Of people whom the operator has let into the console, by their exact name: nobody lists them."""
    people = get_user_model().objects.filter(username=action.username, is_staff=True, is_active=True)
    person = people.first()
    if person is None:
        raise NotFound(details={"username": gettext("Nobody of the console is called so.")})
    tenant_id = current_tenant_id()
    row, created = Membership.objects.get_or_create(
        tenant_id=tenant_id, user=person, defaults={"role": action.role}
    )
    if not created:
        raise Conflict(details={"username": gettext("This person belongs to the tenant already.")})
    _record_membership(action, row, before={}, after=_membership(row))
    return KeptMembership(row_id=row.pk)


@handles(MembershipUpdateAction)
def update_membership(action: MembershipUpdateAction) -> KeptMembership:
    row = _locked_membership(action.row_id)
    before = _membership(row)
    row.role = action.role
    row.save(update_fields=["role"])
    _record_membership(action, row, before, _membership(row))
    return KeptMembership(row_id=row.pk)


@handles(MembershipDeleteAction)
def delete_membership(action: MembershipDeleteAction) -> None:
    row = _locked_membership(action.row_id)
    _record_membership(action, row, _membership(row), after={})
    row.delete()


def _locked_membership(row_id: int) -> Membership:
    rows = Membership.objects.select_related("user").select_for_update(of=("self",))
    row: Membership | None = rows.filter(pk=row_id).first()
    if row is None:
        raise NotFound()
    return row


def _membership(row: Membership) -> dict[str, Any]:
    return {"person": row.user.get_username(), "role": str(row.role)}


def _record_membership(
    action: MembershipCreateAction | MembershipUpdateAction | MembershipDeleteAction,
    row: Membership,
    before: dict[str, Any],
    after: dict[str, Any],
) -> None:
    record(action.verb, "membership", row.pk, tenant_id=row.tenant_id, before=before, after=after)


@handles(TenantSuspendAction)
def suspend_tenant(action: TenantSuspendAction) -> None:
    """Suspending twice keeps the first moment and its reason."""
    with tenant_scope(action.tenant_id):
        if _locked_tenant(action.tenant_id).suspended_at is not None:
            return
        rows = Tenant.objects.filter(pk=action.tenant_id)
        rows.update(suspended_at=Now(), suspended_reason=action.reason)
        _record_suspension(action, _ON, {"suspended": True, "reason": action.reason})
        enqueue(TenantStopRunsAction())
    transaction.on_commit(functools.partial(tenant_changed, action.tenant_id))
    transaction.on_commit(functools.partial(tell_access, action.tenant_id))


@handles(TenantUnsuspendAction)
def unsuspend_tenant(action: TenantUnsuspendAction) -> None:
    """Switching on what is not switched off changes nothing."""
    with tenant_scope(action.tenant_id):
        tenant = _locked_tenant(action.tenant_id)
        if tenant.suspended_at is None:
            return
        Tenant.objects.filter(pk=tenant.pk).update(suspended_at=None, suspended_reason="")
        _record_suspension(action, {"suspended": True, "reason": tenant.suspended_reason}, _ON)
    transaction.on_commit(functools.partial(tenant_changed, action.tenant_id))


_ON = {"suspended": False, "reason": ""}


def _record_suspension(
    action: TenantSuspendAction | TenantUnsuspendAction, before: dict[str, Any], after: dict[str, Any]
) -> None:
    tenant_id = action.tenant_id
    record(action.verb, "tenant", tenant_id, tenant_id=tenant_id, before=before, after=after)


def _locked_tenant(tenant_id: str) -> Tenant:
    tenant = Tenant.objects.select_for_update(no_key=True).filter(pk=tenant_id).first()
    if tenant is None:
        raise TenantNotFound()
    return tenant


@handles(TenantStopRunsAction, atomic=False)
def stop_tenants_runs(action: TenantStopRunsAction) -> None:
    tenant = Tenant.objects.filter(pk=current_tenant_id(), suspended_at__isnull=False)
    stop_runs(Task.objects.filter(agent_id__isnull=False), tenant.exists)


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
        id=action.tenant_id,
        defaults={"name": action.name, "tier": tier, "retention_days": action.retention_days},
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
    before = {"name": tenant.name, "tier": tenant.tier_id, "retention_days": tenant.retention_days}
    tenant.name, tenant.tier = action.name, _tier(action.tier)
    tenant.retention_days = action.retention_days
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


@handles(PriceSetAction)
def set_price(action: PriceSetAction) -> SetPrice:
    """A new row: those that calls were made by stay as they are."""
    fields = action.model_dump(include=set(PRICED))
    before = (
        ModelPrice.unscoped.filter(
            tenant_id=action.tenant_id,
            provider=action.provider,
            model=action.model,
            from_prompt_tokens=action.from_prompt_tokens,
            withdrawn_at=None,
        )
        .order_by("-valid_from", "-pk")
        .values(*PRICED)
        .first()
    )
    valid_from = action.valid_from or timezone.now()
    price = ModelPrice.unscoped.create(
        tenant_id=action.tenant_id, valid_from=valid_from, source=ModelPrice.Source.CONSOLE, **fields
    )
    after = {**fields, "valid_from": valid_from}
    record(action.verb, "price", price.pk, tenant_id=action.tenant_id, before=before or {}, after=after)
    return SetPrice(row_id=price.pk)


@handles(PriceWithdrawAction)
def withdraw_price(action: PriceWithdrawAction) -> None:
    """Withdrawing twice keeps the first moment."""
    price = ModelPrice.unscoped.select_for_update(no_key=True).filter(pk=action.row_id).first()
    if price is None:
        raise NotFound()
    if price.withdrawn_at is not None:
        return
    ModelPrice.unscoped.filter(pk=price.pk).update(withdrawn_at=Now())
    before = {name: getattr(price, name) for name in PRICED}
    record(action.verb, "price", price.pk, tenant_id=price.tenant_id, before=before, after={})


@handles(NoticeRelayAction)
def relay_notices(action: NoticeRelayAction) -> None:
    """Done twice, it finds nothing the second time."""
    outbox.relay(action.subject)
