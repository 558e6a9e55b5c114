"""The Celery app, in every process: the web publishes with it, workers consume."""

from celery import Celery, signals

from core import aio, health
from core.actions import drain, sweeper
from core.actions.worker import register_tasks
from core.broker import keeper
from core.broker.doctor import refuse_other_transports
from core.queues.amqp import AMQP
from core.selectors import tenant_queue_limits
from execution.providers.registry import close
from orchestrator.idempotency import forget_expired

app = Celery("nooble", amqp=AMQP)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.set_default()
keeper.limits_source = tenant_queue_limits
sweeper.chores.append(forget_expired)
register_tasks(app)
signals.worker_init.connect(sweeper.start)
signals.worker_shutting_down.connect(drain.begin)


@signals.worker_shutdown.connect
def close_connections(**_: object) -> None:
    """Those to providers, when the last run has ended."""
    aio.run(close())


health.register(app)
refuse_other_transports()
