"""The Celery app, in every process: the web publishes with it, workers consume."""

from typing import Any

from celery import Celery, signals
from django.conf import settings

from conversations import erasing, rounds
from core import aio, health, metrics, outbound, outbox
from core.actions import drain, sweeper
from core.actions.worker import register_tasks
from core.broker import keeper
from core.broker.doctor import refuse_other_transports
from core.ledger import forget_uses, keep_left
from core.queues.amqp import AMQP
from core.selectors import tenant_queue_limits
from execution.providers.registry import close
from orchestrator.batches import rounds as batch_rounds
from orchestrator.idempotency import forget_expired, forget_sessions
from orchestrator.webhooks import postman

app = Celery("nooble", amqp=AMQP)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.set_default()
keeper.limits_source = tenant_queue_limits
sweeper.chores += [forget_expired, outbox.relay_left, outbox.forget_old, forget_uses]
sweeper.leftovers += [keep_left]
outbox.subscribers.append(postman.fan_out)
erasing.belongings.append(forget_sessions)
register_tasks(app)
signals.worker_init.connect(sweeper.start)
signals.worker_init.connect(metrics.start)
signals.worker_shutting_down.connect(drain.begin)


@signals.celeryd_init.connect
def hide_banner(instance: Any, **_: object) -> None:
    """In production all that a process prints is lines of JSON."""
    instance.quiet = instance.quiet or settings.NOOBLE_ENV == "prod"


@signals.celeryd_after_setup.connect
def deliver_webhooks(instance: Any, **_: object) -> None:
    """In workers of the front door's domain: those of agents have streams to write."""
    if "orchestrator" in instance.app.amqp.queues.consume_from:
        postman.start()


@signals.worker_shutdown.connect
def close_connections(**_: object) -> None:
    """Those to providers, when the last run has ended, and to webhooks."""
    postman.stop()
    aio.run(outbound.close())
    aio.run(close())


health.register(app)
rounds.register(app)
batch_rounds.register(app)
refuse_other_transports()
