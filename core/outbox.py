"""The outbox: notices are written with the change that they tell, and told after its commit.

`notify` writes; a task, enqueued in the same transaction, relays. Killed at any moment: the change is
not there, or its notice is; and the sweeper's `relay_left` finds what no task relayed.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import redis
from django.db import connection, transaction
from django.db.models.functions import Now

from core import aio, tracing
from core.actions.bus import enqueue
from core.actions.notices import NoticeRelayAction
from core.events.base import Event
from core.events.publisher import publish_update
from core.models.outbox import Notice
from core.tenancy import across_tenants, current_tenant_id, tenant_scope

logger = logging.getLogger(__name__)

SLICE = 200  # notices of one subject that are relayed together
TELL_SECONDS = 2.0  # Valkey that is frozen must not hold up the rest
LEFT = datetime.timedelta(minutes=10)  # by then a notice has been relayed, or its task has failed
KEPT = datetime.timedelta(days=30)

# Who takes part in the relaying transaction; set by the roof.
subscribers: list[Callable[[Sequence[Notice]], None]] = []


def notify(event: Event, subject: str | uuid.UUID, *, aliases: Sequence[str] = ()) -> None:
    """Write an event of the current tenant, in the transaction of what it tells.

    `subject` is the id of what it is about. It is told once more under each of the `aliases`, marked
    with `alias_of`. An event whose id is known already has been written before, and is not again.
    Raises RuntimeError outside a transaction: the change and its notice would be two things.
    """
    if not connection.in_atomic_block:
        raise RuntimeError(f"{event.event}: a notice belongs into the transaction of its change")
    subject = str(subject)
    # Until the commit: ids of one subject grow in the order of commits.
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{current_tenant_id()} {subject}"]
        )
    if Notice.objects.filter(event_id=event.event_id).exists():
        return
    body = {"seq": None, **event.model_dump(mode="json")}
    for name in (event.event, *aliases):
        _write(body, name, subject)
    enqueue(NoticeRelayAction(subject=subject))


def _write(body: dict[str, Any], name: str, subject: str) -> None:
    event_id = uuid.UUID(body["event_id"])
    if name != body["event"]:
        event_id = uuid.uuid5(event_id, name)
        body = {**body, "event": name, "event_id": str(event_id), "alias_of": body["event"]}
    Notice.unscoped.create(
        tenant_id=current_tenant_id(),
        event_id=event_id,
        event=name,
        subject=subject,
        body=body,
        traceparent=tracing.header(),
    )


def relay(subject: str) -> None:
    """Tell everything of the subject that is not told yet, in order; in a transaction.

    Dashboards hear it before the commit, while nobody else can relay the same: in order, and once more
    when the commit fails. They hear what happens while they are open, and no more than that.
    """
    rows = Notice.objects.filter(subject=subject, relayed_at=None).order_by("pk").select_for_update()
    while notices := list(rows[:SLICE]):
        Notice.objects.filter(pk__in=[notice.pk for notice in notices]).update(relayed_at=Now())
        for subscriber in subscribers:
            subscriber(notices)
        _publish(notices)


def _publish(notices: Sequence[Notice]) -> None:
    async def tell() -> None:
        for notice in notices:
            await publish_update(notice.tenant_id, notice.body)

    try:
        aio.run(asyncio.wait_for(tell(), TELL_SECONDS))
    except (redis.RedisError, OSError, TimeoutError) as error:
        logger.warning("dashboards do not hear of %s: %s", notices[0].subject, error)


@across_tenants()
def relay_left(limit: int = 1_000) -> None:
    """Relay what waits although its task has ended; for all tenants. Now and then, by the sweeper."""
    left = Notice.unscoped.filter(relayed_at=None, created_at__lt=Now() - LEFT)
    for tenant_id, subject in left.values_list("tenant_id", "subject").distinct()[:limit]:
        logger.warning("%s: a notice of %s was left", tenant_id, subject)
        with tenant_scope(tenant_id), transaction.atomic():
            enqueue(NoticeRelayAction(subject=subject))


@across_tenants()
def forget_old(limit: int = 5_000) -> int:
    """Delete notices of all tenants that were told long ago, with what hangs on them. Returns how many."""
    old = Notice.unscoped.filter(created_at__lt=Now() - KEPT).exclude(relayed_at=None)
    pks = list(old.order_by("created_at").values_list("pk", flat=True)[:limit])
    Notice.unscoped.filter(pk__in=pks).delete()
    return len(pks)
