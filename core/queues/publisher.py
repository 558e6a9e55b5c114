"""The one place that publishes Celery messages of tasks."""

from __future__ import annotations

import uuid

from celery import current_app

from core import valkey
from core.queues.names import QueueName
from core.queues.router import queue_of


def publish(name: str, task_id: uuid.UUID, tenant_id: str, queue: QueueName) -> None:
    """Send the message `{task_id, tenant_id}` to the tenant's queue.

    Raises kombu's OperationalError: at once where Valkey has just not answered, else within about a
    second. The message carries ids only; action, payload and callback live in the row. Celery's own
    `send_task` would look up the result backend each time, which nobody uses.
    """
    amqp = current_app.amqp
    message = amqp.create_task_message(
        str(task_id), name, kwargs={"task_id": str(task_id), "tenant_id": tenant_id}, ignore_result=True
    )
    with (
        current_app.producer_or_acquire() as producer,
        producer.connection._reraise_as_library_errors(),
    ):
        if not producer.connection.connected:
            valkey.client().ping()  # the first word of kombu's own would wait longer for its answer
        amqp.send_task_message(producer, name, message, queue=queue_of(queue), retry=False)
