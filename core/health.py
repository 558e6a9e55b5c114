"""Whether work gets through: a probe walks every domain's queue to a worker and leaves its mark."""

from __future__ import annotations

import time
from typing import Any

import orjson
from celery import Celery, signals
from django.db import connection

from core import valkey
from core.broker import figures

PROBE = "core.probe"
_MARKS = "nooble:probe"
STALE_SECONDS = 30


def register(app: Celery) -> None:
    """Make the probe known to the app; a worker that is ready probes its own domains at once."""
    app.task(name=PROBE)(probe)

    @signals.worker_ready.connect(weak=False)
    def probe_own_domains(sender: Any, **_: Any) -> None:
        for domain in sender.app.amqp.queues.consume_from:
            app.send_task(PROBE, args=[domain])


def probe(domain: str) -> None:
    """Runs in a worker: reach the database and Valkey, then write down when and how fast.

    Raises what the database or Valkey raise: then the mark grows old.
    """
    started = time.perf_counter()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    database = time.perf_counter() - started
    mark = {"at": time.time(), "database_ms": round(database * 1000, 2)}
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
