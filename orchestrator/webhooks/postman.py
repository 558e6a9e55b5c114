"""Who sends deliveries: a thread in every worker process of the orchestrator's domain, and its carriers.

A delivery is a row with a due time, not a task: it may wait for a day, and its endpoint may take ten
seconds to answer, for which none of the platform's workers is held up. What a killed process had on
the way is due again when its claim runs out: at least once, with the same `webhook-id`.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from core import aio, metrics, outbound, tracing
from core.actions.bus import execute
from core.away import DATABASE_AWAY
from core.models import Notice
from core.secrets import SecretUnreadable, decrypt
from core.tenancy import across_tenants, tenant_scope
from orchestrator.actions import WebhookRecordAttemptAction
from orchestrator.models import Delivery, WebhookEndpoint
from orchestrator.webhooks.signing import headers

logger = logging.getLogger(__name__)

# On the way at once, from one process: one endpoint or tenant that is slow leaves room for the others.
MOST, MOST_OF_TENANT, MOST_OF_ENDPOINT = 32, 8, 4
CLAIM_SECONDS = 20.0  # longer than a request and its record take
SLICE = 200
SHOWN = 1_024  # bytes of an answer that are kept
RECORD_TRIES, RECORD_SECONDS = 5, 1.0
AGENT = "Nooble-Webhooks/1.0"

# Rings when there may be something to send.
bell = threading.Event()

_postman: Postman | None = None


def start() -> None:
    """Deliver from now on. A worker process calls it when it begins."""
    global _postman
    if _postman is None:
        _postman = Postman()
        _postman.start()


def stop() -> None:
    """Take nothing more, and wait for what is on the way: no longer than a request may take."""
    global _postman
    if _postman is not None:
        _postman.stop()
        _postman = None


def fan_out(notices: Sequence[Notice]) -> None:
    """Write what goes to which endpoint, in the relaying transaction; all notices are one tenant's."""
    tenant_id = notices[0].tenant_id
    # Locked: nobody deletes or disables one while it gets a delivery.
    living = WebhookEndpoint.objects.filter(disabled_at=None).order_by("pk").select_for_update(no_key=True)
    deliveries = [
        Delivery(
            tenant_id=tenant_id,
            endpoint=endpoint,
            notice=notice,
            event=notice.event,
            subject=notice.subject,
        )
        for endpoint in living
        for notice in notices
        if not endpoint.events or notice.event in endpoint.events
    ]
    Delivery.unscoped.bulk_create(deliveries, ignore_conflicts=True)
    transaction.on_commit(bell.set)


class Postman:
    """One a process."""

    def __init__(self) -> None:
        self._carriers = ThreadPoolExecutor(MOST, thread_name_prefix="carrier")
        self._thread = threading.Thread(target=self._run, name="postman", daemon=True)
        self._lock = threading.Lock()
        self._under_way: dict[uuid.UUID, tuple[str, uuid.UUID]] = {}  # delivery: tenant, endpoint
        self._is_over = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over = True
        bell.set()
        self._thread.join()
        self._carriers.shutdown(wait=True)

    def _run(self) -> None:
        while not self._is_over:
            bell.wait(settings.WORKER_SLEEP_SECONDS)
            bell.clear()
            try:
                self.turn()
            except DATABASE_AWAY as error:
                logger.warning("nothing is delivered: %s", error)
            except Exception:
                logger.exception("nothing is delivered")
            finally:
                connection.close()

    def turn(self) -> None:
        """Give to carriers what is due, as far as there is room. Raises what the database raises."""
        while not self._is_over and (claimed := self._claim()):
            for delivery in claimed:
                self._carriers.submit(self._carry, delivery)

    @across_tenants()
    def _claim(self) -> list[Any]:
        with self._lock:
            under_way = list(self._under_way.values())
        tenants = Counter(tenant for tenant, _ in under_way)
        endpoints = Counter(endpoint for _, endpoint in under_way)
        room = MOST - len(under_way)
        if room <= 0:
            return []
        chosen = []
        with transaction.atomic():
            for delivery in _due(_full(tenants, MOST_OF_TENANT), _full(endpoints, MOST_OF_ENDPOINT)):
                tenant_id, endpoint_id = delivery.tenant_id, delivery.endpoint_id
                if tenants[tenant_id] >= MOST_OF_TENANT or endpoints[endpoint_id] >= MOST_OF_ENDPOINT:
                    continue
                tenants[tenant_id] += 1
                endpoints[endpoint_id] += 1
                delivery.claim = uuid.uuid4()
                chosen.append(delivery)
                if len(chosen) == room:
                    break
            until = Now() + datetime.timedelta(seconds=CLAIM_SECONDS)
            for delivery in chosen:
                Delivery.unscoped.filter(pk=delivery.pk).update(claim=delivery.claim, claimed_until=until)
        with self._lock:
            self._under_way |= {item.pk: (item.tenant_id, item.endpoint_id) for item in chosen}
        return chosen

    def _carry(self, delivery: Delivery) -> None:
        with tracing.context(delivery.notice.traceparent):
            try:
                with tracing.span("webhook.deliver", "client"):
                    attempt = _attempt(delivery)
                _record(attempt, delivery.tenant_id)
                metrics.WEBHOOK_ATTEMPTS.add("ok" if (attempt.status_code or 0) // 100 == 2 else "failed")
            except Exception:
                # Its claim runs out, and it is tried again.
                logger.exception("delivery %s: nobody knows what came of an attempt", delivery.pk)
            finally:
                with self._lock:
                    self._under_way.pop(delivery.pk, None)
                bell.set()  # there is room; and what came after this one of the same subject may go
                connection.close()


def _full(counts: Counter[Any], most: int) -> list[Any]:
    return [key for key, count in counts.items() if count >= most]


def _due(full_tenants: list[str], full_endpoints: list[uuid.UUID]) -> QuerySet[Delivery]:
    """What may be tried now, locked: due, nobody's, and the first of its subject at its endpoint."""
    earlier = Delivery.unscoped.filter(
        endpoint=OuterRef("endpoint"),
        subject=OuterRef("subject"),
        notice__lt=OuterRef("notice"),
        status=Delivery.Status.PENDING,
    )
    rows: QuerySet[Delivery] = Delivery.unscoped.filter(
        ~Exists(earlier),
        Q(claimed_until=None) | Q(claimed_until__lt=Now()),
        status=Delivery.Status.PENDING,
        due_at__lte=Now(),
    )
    rows = rows.exclude(tenant__in=full_tenants).exclude(endpoint__in=full_endpoints)
    rows = rows.select_related("endpoint", "notice").order_by("due_at", "notice")
    return rows.select_for_update(skip_locked=True, of=("self",))[:SLICE]


def _attempt(delivery: Delivery) -> WebhookRecordAttemptAction:
    """Send it once; what came of it."""
    started_at, begun = datetime.datetime.now(datetime.UTC), time.monotonic()
    outcome: dict[str, Any] = {}
    try:
        answer = aio.run(_post(delivery, int(started_at.timestamp())))
        # A NUL is no text for PostgreSQL.
        shown = answer.body[:SHOWN].decode(errors="replace").replace("\0", "\ufffd")
        outcome = {"status_code": answer.status, "answer": shown}
    except outbound.OutboundError as error:
        outcome = {"error": str(error)[:200]}
    except SecretUnreadable as error:
        logger.error("webhook %s: %s", delivery.endpoint_id, error)
        outcome = {"error": "the secret of this webhook cannot be read"}
    return WebhookRecordAttemptAction(
        delivery_id=delivery.pk,
        claim=delivery.claim,
        started_at=started_at,
        seconds=round(time.monotonic() - begun, 3),
        **outcome,
    )


async def _post(delivery: Delivery, timestamp: int) -> outbound.Answer:
    endpoint, notice = delivery.endpoint, delivery.notice
    body = orjson.dumps({"type": notice.event, **notice.body})
    keys = [decrypt(endpoint.secret)]
    if endpoint.previous_until is not None and endpoint.previous_until.timestamp() > timestamp:
        keys.append(decrypt(endpoint.previous_secret))
    sent = headers(str(notice.event_id), timestamp, body, keys)
    sent |= {"Content-Type": "application/json", "User-Agent": AGENT}
    if header := tracing.header():
        sent[tracing.HEADER] = header
    return await outbound.post(endpoint.url, body=body, headers=sent, allow=settings.OUTBOUND_ALLOW)


def _record(attempt: WebhookRecordAttemptAction, tenant_id: str) -> None:
    """Also when the database is away for a moment. Raises what it raises then."""
    for tries_left in reversed(range(RECORD_TRIES)):
        try:
            with tenant_scope(tenant_id):
                execute(attempt)
            return
        except DATABASE_AWAY as error:
            if not tries_left:
                raise
            logger.warning("delivery %s is recorded later: %s", attempt.delivery_id, error)
            connection.close()
            time.sleep(RECORD_SECONDS)
