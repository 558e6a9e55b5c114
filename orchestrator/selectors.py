"""Named reads of the front door."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet
from django.db.models.functions import Now

from conversations.models import Message, Session
from core.errors import TaskNotFound
from core.ids import is_slug, parse_uuid
from core.models import Task
from core.models.task import FINAL
from core.tenancy import across_tenants
from execution.actions import ExecuteAgentAction
from orchestrator.actions import AttemptResource, DeliveryResource, WebhookResource
from orchestrator.errors import DeliveryNotFound, WebhookNotFound
from orchestrator.models import Delivery, DeliveryAttempt, WebhookEndpoint


def task_tenant(task_id: str, tenant_id: str | None) -> str:
    """The tenant in whose scope the task is looked up: the one named, else the task's own.

    Raises TaskNotFound.
    """
    if tenant_id is not None:
        if not is_slug(tenant_id):
            raise TaskNotFound()
        return tenant_id
    pk = parse_uuid(task_id)
    with across_tenants():  # who knows the id may ask
        found = Task.unscoped.filter(pk=pk).values_list("tenant_id", flat=True).first() if pk else None
    if found is None:
        raise TaskNotFound()
    return str(found)


@dataclass(frozen=True, slots=True)
class SessionStanding:
    """Whose a session is, and whether anything has been said in it."""

    key: str
    agent_id: uuid.UUID
    user_id: str
    has_messages: bool


def session_standings(keys: Collection[str]) -> dict[str, SessionStanding]:
    """Those of the current tenant's sessions that exist."""
    said = Exists(Message.objects.filter(session=OuterRef("pk")))
    rows = Session.objects.filter(key__in=keys, deleted_at=None)
    return {row[0]: SessionStanding(*row) for row in rows.values_list("key", "agent_id", "user_id", said)}


def task_is_open(task_id: uuid.UUID) -> bool:
    """Whether the current tenant's task has still to be settled."""
    return Task.objects.filter(pk=task_id).exclude(status__in=FINAL).exists()


def task_get(task_id: uuid.UUID) -> Task:
    """The current tenant's task of that id. Raises TaskNotFound."""
    task: Task | None = Task.objects.filter(pk=task_id).first()
    if task is None:
        raise TaskNotFound()
    return task


def chat_task(text: str) -> Task:
    """The current tenant's run of that id. Raises TaskNotFound."""
    pk = parse_uuid(text)
    task: Task | None = Task.objects.filter(pk=pk, action=ExecuteAgentAction.verb).first() if pk else None
    if task is None:
        raise TaskNotFound()
    return task


def settled_before(task_id: uuid.UUID, seconds: float) -> tuple[Task, bool]:
    """The current tenant's task, and whether it was settled longer ago than that by the database's clock.

    Raises TaskNotFound.
    """
    moment = Now() - datetime.timedelta(seconds=seconds)
    task = Task.objects.annotate(long_settled=Q(finished_at__lt=moment)).filter(pk=task_id).first()
    if task is None:
        raise TaskNotFound()
    return task, task.is_final and bool(task.long_settled)


def webhook_get(webhook_id: uuid.UUID) -> WebhookEndpoint:
    """An endpoint of the current tenant. Raises WebhookNotFound."""
    endpoint: WebhookEndpoint | None = WebhookEndpoint.objects.filter(pk=webhook_id).first()
    if endpoint is None:
        raise WebhookNotFound()
    return endpoint


def webhook_list(after: uuid.UUID | None, limit: int) -> list[WebhookEndpoint]:
    """Endpoints of the current tenant, oldest first, `limit` of them after `after`."""
    rows = WebhookEndpoint.objects.order_by("pk")
    return list(rows.filter(pk__gt=after)[:limit] if after else rows[:limit])


def webhook_resource(endpoint: WebhookEndpoint, secret: str | None = None) -> WebhookResource:
    """The endpoint as the API shows it, with its secret only where that was just made."""
    shown = {"secret": secret} if secret is not None else {}
    return WebhookResource(
        webhook_id=endpoint.pk,
        url=endpoint.url,
        description=endpoint.description,
        events=endpoint.events,
        disabled=endpoint.disabled_at is not None,
        disabled_reason=endpoint.disabled_reason,
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
        **shown,
    )


def delivery_get(delivery_id: uuid.UUID) -> Delivery:
    """A delivery of the current tenant. Raises DeliveryNotFound."""
    delivery: Delivery | None = _deliveries().filter(pk=delivery_id).first()
    if delivery is None:
        raise DeliveryNotFound()
    return delivery


def delivery_list(
    endpoint: WebhookEndpoint, before: uuid.UUID | None, status: str | None, limit: int
) -> list[Delivery]:
    """An endpoint's deliveries, newest first, `limit` of them older than `before`."""
    rows = _deliveries().filter(endpoint=endpoint).order_by("-pk")
    if before is not None:
        rows = rows.filter(pk__lt=before)
    if status is not None:
        rows = rows.filter(status=status)
    return list(rows[:limit])


def _deliveries() -> QuerySet[Delivery]:
    rows: QuerySet[Delivery] = Delivery.objects.select_related("notice").prefetch_related(
        Prefetch("attempts", DeliveryAttempt.objects.order_by("pk"))
    )
    return rows


def delivery_resource(delivery: Delivery) -> DeliveryResource:
    """The delivery as the API shows it, with all its attempts."""
    waits = delivery.status == Delivery.Status.PENDING
    return DeliveryResource(
        delivery_id=delivery.pk,
        webhook_id=delivery.endpoint_id,
        event=delivery.event,
        event_id=delivery.notice.event_id,
        status=delivery.status,
        next_attempt_at=delivery.due_at if waits else None,
        created_at=delivery.created_at,
        finished_at=delivery.finished_at,
        attempts=[
            AttemptResource(
                started_at=attempt.started_at,
                seconds=attempt.seconds,
                status_code=attempt.status_code,
                error=attempt.error,
                answer=attempt.answer,
            )
            for attempt in delivery.attempts.all()
        ],
    )
