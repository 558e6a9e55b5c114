"""The one place that publishes Celery messages of tasks."""

from __future__ import annotations

import uuid

from celery import current_app

from core.queues.names import QueueName
from core.queues.router import queue_of


def publish(name: str, task_id: uuid.UUID, tenant_id: str, queue: QueueName) -> None:
    """Send the message `{task_id, tenant_id}` to the tenant's queue. Raises kombu's OperationalError.

    The message carries ids only; action, payload and callback live in the row.
    """
    current_app.send_task(
        name,
        kwargs={"task_id": str(task_id), "tenant_id": tenant_id},
        queue=queue_of(queue),  # type: ignore[arg-type]
        task_id=str(task_id),
    )
