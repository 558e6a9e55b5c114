"""What Celery knows of queues: a four-part name is enough, and it is never remembered."""

from __future__ import annotations

from celery.app import amqp
from kombu import Queue

from core.queues.names import QueueName
from core.queues.router import queue_of


class Queues(amqp.Queues):
    """`task.retry` and `apply_async(queue=...)` name the queue; Celery looks it up among the domains."""

    def __missing__(self, name: str) -> Queue:
        try:
            return queue_of(QueueName.parse(name))
        except ValueError:
            return super().__missing__(name)


class AMQP(amqp.AMQP):
    queues_cls = Queues
