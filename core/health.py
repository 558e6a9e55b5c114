"""Whether work gets through: a probe walks every domain's queue to a worker and leaves its mark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
from celery import Celery, signals
from django.db import connection
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily as Gauge

from core import valkey
from core.broker import figures
from core.tenancy import across_tenants

PROBE = "core.probe"
_MARKS = "nooble:probe"
STALE_SECONDS = 30
LOST_AFTER = "5 minutes"  # many times what the sweeper needs to find a task that nobody looks after


def register(app: Celery) -> None:
    """Make the probe known to the app; a worker that is ready probes its own domains at once."""
    app.task(name=PROBE)(probe)

    @signals.worker_ready.connect(weak=False)
    def probe_own_domains(sender: Any, **_: Any) -> None:
        for domain in sender.app.amqp.queues.consume_from:
            app.send_task(PROBE, args=[domain, time.time()])


def probe(domain: str, sent_at: float) -> None:
    """Runs in a worker: reach the database and Valkey, then write down when and how fast.

    `sent_at` is the sender's wall clock. Raises what the database or Valkey raise: then the mark grows old.
    """
    waited = max(0.0, time.time() - sent_at)
    started = time.perf_counter()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    database = time.perf_counter() - started
    mark = {
        "at": time.time(),
        "queue_ms": round(waited * 1000, 2),
        "database_ms": round(database * 1000, 2),
    }
    valkey.client().hset(_MARKS, domain, orjson.dumps(mark))


def forget() -> None:
    """No domain has been walked yet."""
    valkey.client().delete(_MARKS)


def read() -> tuple[bool, dict[str, Any]]:
    """Whether every domain has been walked in the last 30 s, and the state of each with its totals.

    One round trip, whatever waits. Raises RedisError.
    """
    pipeline = valkey.client().pipeline(transaction=False)
    pipeline.hgetall(_MARKS)
    figures.ask(pipeline)
    marks, *replies = pipeline.execute()
    lines, dead = figures.answer(replies)
    now = time.time()
    components: dict[str, Any] = {}
    for line in lines:
        mark = orjson.loads(marks[line.domain.encode()]) if line.domain.encode() in marks else None
        age = now - mark["at"] if mark else None
        components[line.domain] = {
            "status": "ok" if age is not None and age <= STALE_SECONDS else "unavailable",
            "last_probe_seconds_ago": round(age, 1) if age is not None else None,
            "waiting": line.waiting,
            "running": line.running,
            "delayed": line.delayed,
        }
    healthy = all(component["status"] == "ok" for component in components.values())
    return healthy, {"components": components, "dead_letters": dead}


def of_queues() -> Iterator[Metric]:
    """What waits and runs in each domain, and what the last probe met there. Raises RedisError."""
    pipeline = valkey.client().pipeline(transaction=False)
    pipeline.hgetall(_MARKS)
    figures.ask(pipeline)
    marks, *replies = pipeline.execute()
    lines, dead = figures.answer(replies)
    messages = Gauge("nooble_queue_messages", "Messages in a domain's queues", labels=("domain", "state"))
    tenants = Gauge("nooble_queue_tenants", "Tenants with messages that wait", labels=("domain",))
    age = Gauge("nooble_probe_age_seconds", "Since the last probe that got through", labels=("domain",))
    took = Gauge("nooble_probe_seconds", "What the last probe met on its way", labels=("domain", "part"))
    for line in lines:
        for state in ("waiting", "running", "delayed"):
            messages.add_metric((line.domain, state), getattr(line, state))
        tenants.add_metric((line.domain,), line.tenants)
        if (told := marks.get(line.domain.encode())) is not None:
            mark = orjson.loads(told)
            age.add_metric((line.domain,), max(0.0, time.time() - mark["at"]))
            took.add_metric((line.domain, "queue"), mark["queue_ms"] / 1000)
            took.add_metric((line.domain, "database"), mark["database_ms"] / 1000)
    yield from (messages, tenants, age, took)
    yield Gauge("nooble_dead_letters", "Messages that no worker could use", value=dead)


# A task that waits, or whose worker died, is looked at every 30 s at the latest.
_LOST = """
SELECT (SELECT count(*) FROM core_task
         WHERE status IN ('pending', 'queued') AND due_at < statement_timestamp() - %(grace)s::interval)
     + (SELECT count(*) FROM core_task WHERE status IN ('processing', 'cancelling')
           AND lease_until < statement_timestamp() - %(grace)s::interval)
"""
_OPEN = """
SELECT status, count(*), extract(epoch FROM statement_timestamp() - min(created_at)) FROM core_task
 WHERE status NOT IN ('completed', 'failed', 'cancelled') GROUP BY status
"""
_NOT_TOLD = """
SELECT count(*), extract(epoch FROM statement_timestamp() - min(created_at)) FROM core_notice
 WHERE relayed_at IS NULL
"""


def of_tasks() -> Iterator[Metric]:
    """What the rows say of tasks and notices that are not done. Raises DatabaseError."""
    count = Gauge("nooble_tasks_open", "Tasks that have not ended", labels=("status",))
    oldest = Gauge("nooble_task_open_seconds", "The oldest task that has not ended", labels=("status",))
    with across_tenants(), connection.cursor() as cursor:
        cursor.execute(_LOST, {"grace": LOST_AFTER})
        lost = cursor.fetchone()[0]
        cursor.execute(_OPEN)
        for status, number, seconds in cursor.fetchall():
            count.add_metric((status,), number)
            oldest.add_metric((status,), float(seconds))
        cursor.execute(_NOT_TOLD)
        notices, waits = cursor.fetchone()
    yield from (count, oldest)
    yield Gauge(
        "nooble_tasks_lost",
        f"Tasks that were accepted and that nobody has looked after for {LOST_AFTER}: it must be 0",
        value=lost,
    )
    yield Gauge("nooble_notices_waiting", "Notices that are not relayed yet", value=notices)
    yield Gauge("nooble_notice_waiting_seconds", "The oldest of them", value=float(waits or 0))
