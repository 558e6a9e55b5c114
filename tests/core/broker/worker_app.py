"""A small Celery app on the real transport, for tests that need worker processes of their own."""

from __future__ import annotations

import os
from typing import Any

import django
import redis
from celery import Celery, Task, signals
from django.apps import apps
from django.conf import settings
from kombu import Queue
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from core.broker import keeper
from core.broker.urls import broker_url
from core.queues.names import DOMAINS, QueueName
from core.queues.router import queue_of

if not apps.ready:
    django.setup()

from core.actions import sweeper
from nooble.celery import app as platform

RUNS, STARTED, DONE, GATE = "test:runs", "test:started", "test:done", "test:gate"


def make_app(url: str) -> Celery:
    """The platform's settings, another broker, and one plain queue beside the domains."""
    app = Celery("broker-tests", amqp=platform.amqp_cls, set_as_current=False)
    ours = {name[7:].lower(): getattr(settings, name) for name in dir(settings) if name.startswith("CELERY_")}
    app.conf.update(
        ours
        | {
            "broker_url": broker_url(url),
            "task_queues": [Queue(name) for name in (*DOMAINS, "plain")],
            "beat_schedule": {},
            "worker_soft_shutdown_timeout": float(os.environ.get("TEST_SOFT_SHUTDOWN", "0")),
        }
    )
    # Tasks wait at the gate; and what they note outlives a broker that is away: a task that failed to
    # note its run would be acked as failed, and look lost.
    patience = Retry(ConstantBackoff(0.1), 200)
    client = redis.Redis.from_url(url, socket_timeout=None, retry=patience)

    @app.task(name="tests.note", bind=True)
    def note(self: Task, *_: Any) -> None:
        client.hincrby(RUNS, self.request.id, 1)

    @app.task(name="tests.hold", bind=True)
    def hold(self: Task) -> None:
        """Runs until the gate is open."""
        client.hincrby(RUNS, self.request.id, 1)
        client.rpush(STARTED, self.request.id)
        client.brpoplpush(GATE, GATE, 60)
        client.rpush(DONE, self.request.id)

    @app.task(name="tests.again", bind=True)
    def again(self: Task, seconds: float) -> None:
        """Fails once; `started` tells the queue of every try."""
        client.hincrby(RUNS, self.request.id, 1)
        client.rpush(STARTED, self.request.delivery_info["routing_key"])
        if not self.request.retries:
            raise self.retry(countdown=seconds, max_retries=1)

    return app


@signals.celeryd_init.connect(weak=False)
def forget_database(**_: Any) -> None:
    """These workers have none: nobody asks it for limits, and nobody sweeps it."""
    keeper.limits_source = None
    signals.worker_init.disconnect(sweeper.start)


def send(app: Celery, task: str, name: str, *args: Any, **options: Any) -> str:
    """Publishes as the platform does; returns the task's id."""
    queue = queue_of(QueueName.parse(name))
    return str(app.send_task(task, args=args, queue=queue, **options).id)


app = make_app(settings.REDIS_URL)
