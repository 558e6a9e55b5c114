"""Where a Celery task goes."""

from __future__ import annotations

from typing import Any

from kombu import Queue

from core.ids import SYSTEM_TENANT
from core.queues.names import HIGH, QueueName


def queue_of(name: QueueName) -> Queue:
    """A queue that is published to but never declared: one per tenant would grow the app for ever."""
    return Queue(str(name), no_declare=True)


def route(
    name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any = None, **_: Any
) -> dict[str, Any] | None:
    """Celery's router. Queued actions carry their queue; the probe goes to the domain it probes."""
    if options.get("queue"):
        return None
    if name == "core.probe":
        return {"queue": queue_of(QueueName(args[0], SYSTEM_TENANT, "probe", HIGH.word))}
    return {"queue": queue_of(QueueName("orchestrator", SYSTEM_TENANT, "default", "normal"))}
