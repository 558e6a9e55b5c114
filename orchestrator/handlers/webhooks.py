"""Webhooks: where a tenant hears of what happens, and what becomes of each delivery."""

from __future__ import annotations

import uuid
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Coalesce, Now
from django.utils import timezone
from django.utils.translation import gettext as _

from core.actions.registry import handles
from core.audit import record
from core.errors import ValidationFailed
from core.outbound import OutboundError, check_url
from core.outbox import notify
from core.secrets import encrypt
from core.tenancy import current_tenant_id
from orchestrator.actions import (
    DeliveryResource,
    WebhookCreateAction,
    WebhookDeleteAction,
    WebhookRecordAttemptAction,
    WebhookReplayAction,
    WebhookResource,
    WebhookRotateAction,
    WebhookUpdateAction,
)
from orchestrator.errors import WebhookIsDisabled, WebhookNotFound
from orchestrator.events import NOTICES, DisabledWebhook, WebhookDisabled
from orchestrator.models import Delivery, DeliveryAttempt, WebhookEndpoint
from orchestrator.selectors import delivery_get, delivery_resource, webhook_resource
from orchestrator.tiers import check_room
from orchestrator.webhooks.postman import bell
from orchestrator.webhooks.schedule import LONGEST_FAILING, MOST_DEAD, ROTATION, next_pause
from orchestrator.webhooks.signing import new_secret

GONE = 410


@handles(WebhookCreateAction)
def create(action: WebhookCreateAction) -> WebhookResource:
    check_room()
    _check(action.url, action.events)
    secret = new_secret()
    endpoint = WebhookEndpoint(
        tenant_id=current_tenant_id(),
        url=action.url,
        events=list(action.events),
        description=action.description,
        secret=encrypt(secret),
        disabled_at=timezone.now() if action.disabled else None,
        disabled_reason=WebhookEndpoint.Reason.OWNER if action.disabled else "",
    )
    endpoint.save()
    endpoint.refresh_from_db()  # the database's clock
    _audit(action.verb, endpoint, {})
    return webhook_resource(endpoint, secret)


@handles(WebhookUpdateAction)
def update(action: WebhookUpdateAction) -> WebhookResource:
    endpoint = _locked(action.webhook_id)
    before = _state(endpoint)
    _check(action.url, action.events or ())
    for field, value in (
        ("url", action.url),
        ("events", list(action.events) if action.events is not None else None),
        ("description", action.description),
    ):
        if value is not None:
            setattr(endpoint, field, value)
    endpoint.save(update_fields=["url", "events", "description", "updated_at"])
    if action.disabled and endpoint.disabled_at is None:
        _disable(endpoint, WebhookEndpoint.Reason.OWNER)
    elif action.disabled is False and endpoint.disabled_at is not None:
        _enable(endpoint)
    _audit(action.verb, endpoint, before)
    return webhook_resource(endpoint)


@handles(WebhookDeleteAction)
def delete(action: WebhookDeleteAction) -> None:
    endpoint = _locked(action.webhook_id)
    record(
        action.verb,
        "webhook",
        endpoint.pk,
        tenant_id=endpoint.tenant_id,
        before=_state(endpoint),
        after={},
    )
    endpoint.delete()


@handles(WebhookRotateAction)
def rotate(action: WebhookRotateAction) -> WebhookResource:
    """Rotated again within the day, the secret before the last signs no more."""
    endpoint = _locked(action.webhook_id)
    before = _state(endpoint)
    secret = new_secret()
    endpoint.previous_secret = endpoint.secret
    endpoint.previous_until = timezone.now() + ROTATION
    endpoint.secret = encrypt(secret)
    endpoint.save(update_fields=["secret", "previous_secret", "previous_until", "updated_at"])
    _audit(action.verb, endpoint, before)
    return webhook_resource(endpoint, secret)


@handles(WebhookReplayAction)
def replay(action: WebhookReplayAction) -> DeliveryResource:
    """It begins anew, with all its attempts; one that waits for its next attempt goes now."""
    delivery = delivery_get(action.delivery_id)
    if _locked(delivery.endpoint_id).disabled_at is not None:
        raise WebhookIsDisabled(details={"webhook_id": str(delivery.endpoint_id)})
    anew = {"status": Delivery.Status.PENDING, "failures": 0, "finished_at": None}
    rows = Delivery.objects.filter(pk=delivery.pk)
    if not rows.exclude(status=Delivery.Status.PENDING).update(**anew, due_at=Now(), claim=None):
        rows.update(due_at=Now())
    transaction.on_commit(bell.set)
    return delivery_resource(delivery_get(delivery.pk))


@handles(WebhookRecordAttemptAction)
def record_attempt(action: WebhookRecordAttemptAction) -> None:
    """Only for whoever holds the claim: of a delivery that others have taken over, others tell."""
    found: Delivery | None = Delivery.objects.filter(pk=action.delivery_id).first()
    endpoint = _lock(found.endpoint_id) if found is not None else None
    if endpoint is None:
        return
    rows = Delivery.objects.select_for_update().filter(pk=action.delivery_id, claim=action.claim)
    delivery: Delivery | None = rows.first()
    if delivery is None:
        return
    DeliveryAttempt.unscoped.create(
        tenant_id=delivery.tenant_id,
        delivery=delivery,
        started_at=action.started_at,
        seconds=action.seconds,
        status_code=action.status_code,
        error=action.error,
        answer=action.answer,
    )
    delivery.claim = delivery.claimed_until = None
    if action.status_code is not None and 200 <= action.status_code < 300:
        _delivered(delivery, endpoint)
    elif delivery.status == Delivery.Status.PENDING:
        _failed(delivery, endpoint, gone=action.status_code == GONE)
    delivery.save(update_fields=["status", "failures", "due_at", "claim", "claimed_until", "finished_at"])


def _delivered(delivery: Delivery, endpoint: WebhookEndpoint) -> None:
    delivery.status = Delivery.Status.DELIVERED
    delivery.finished_at = timezone.now()
    if endpoint.dead_in_a_row or endpoint.failing_since is not None:
        WebhookEndpoint.objects.filter(pk=endpoint.pk).update(dead_in_a_row=0, failing_since=None)


def _failed(delivery: Delivery, endpoint: WebhookEndpoint, *, gone: bool) -> None:
    delivery.failures += 1
    pause = None if gone else next_pause(delivery.failures)
    if pause is None:
        delivery.status = Delivery.Status.DEAD
        delivery.finished_at = timezone.now()
        endpoint.dead_in_a_row += 1
    else:
        delivery.due_at = Now() + pause
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(
        dead_in_a_row=endpoint.dead_in_a_row, failing_since=Coalesce("failing_since", Now())
    )
    if gone:
        _give_up(endpoint, WebhookEndpoint.Reason.GONE)
    elif endpoint.dead_in_a_row >= MOST_DEAD or _fails_for_long(endpoint):
        _give_up(endpoint, WebhookEndpoint.Reason.FAILING)
    if endpoint.disabled_at is not None and delivery.status == Delivery.Status.PENDING:
        delivery.status = Delivery.Status.DEAD
        delivery.finished_at = timezone.now()


def _fails_for_long(endpoint: WebhookEndpoint) -> bool:
    since = endpoint.failing_since
    return since is not None and timezone.now() - since > LONGEST_FAILING


def _give_up(endpoint: WebhookEndpoint, reason: WebhookEndpoint.Reason) -> None:
    """The platform does it, not the owner: who looks after the tenant hears of it."""
    if endpoint.disabled_at is not None:
        return
    before = _state(endpoint)
    _disable(endpoint, reason)
    _audit("webhook.give_up", endpoint, before)
    data = DisabledWebhook(webhook_id=endpoint.pk, url=endpoint.url, reason=reason.value)
    event = WebhookDisabled(
        task_id=None, global_task_id=None, tenant_id=endpoint.tenant_id, session_id=None, data=data
    )
    notify(event, endpoint.pk)


def _disable(endpoint: WebhookEndpoint, reason: WebhookEndpoint.Reason) -> None:
    """What still waits for it is dead, and can be replayed once it is enabled again."""
    endpoint.disabled_at = timezone.now()
    endpoint.disabled_reason = reason
    endpoint.save(update_fields=["disabled_at", "disabled_reason", "updated_at"])
    Delivery.objects.filter(endpoint=endpoint, status=Delivery.Status.PENDING).update(
        status=Delivery.Status.DEAD, finished_at=Now()
    )


def _enable(endpoint: WebhookEndpoint) -> None:
    endpoint.disabled_at = endpoint.failing_since = None
    endpoint.disabled_reason = ""
    endpoint.dead_in_a_row = 0
    endpoint.save(
        update_fields=["disabled_at", "disabled_reason", "dead_in_a_row", "failing_since", "updated_at"]
    )


def _locked(webhook_id: uuid.UUID) -> WebhookEndpoint:
    """The current tenant's. Whoever changes an endpoint or its deliveries locks it first."""
    endpoint = _lock(webhook_id)
    if endpoint is None:
        raise WebhookNotFound()
    return endpoint


def _lock(webhook_id: uuid.UUID) -> WebhookEndpoint | None:
    found: WebhookEndpoint | None = WebhookEndpoint.objects.select_for_update().filter(pk=webhook_id).first()
    return found


def _check(url: str | None, events: tuple[str, ...]) -> None:
    if url is not None:
        try:
            check_url(url, settings.OUTBOUND_ALLOW)
        except OutboundError as error:
            raise ValidationFailed(details={"url": str(error)}) from None
    unknown = sorted(set(events) - NOTICES)
    if unknown:
        message = _("No such event: %(events)s") % {"events": ", ".join(unknown)}
        raise ValidationFailed(details={"events": message})


def _state(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "url": endpoint.url,
        "events": endpoint.events,
        "description": endpoint.description,
        "disabled": endpoint.disabled_at is not None,
        "disabled_reason": str(endpoint.disabled_reason),
        "secret": endpoint.secret,
    }


def _audit(verb: str, endpoint: WebhookEndpoint, before: dict[str, Any]) -> None:
    after = _state(endpoint)
    record(verb, "webhook", endpoint.pk, tenant_id=endpoint.tenant_id, before=before, after=after)
