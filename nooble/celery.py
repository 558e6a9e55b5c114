"""The Celery app, in every process: the web publishes with it, workers consume."""

from celery import Celery

from core import health
from core.actions.worker import register_tasks
from core.broker import keeper
from core.broker.doctor import refuse_other_transports
from core.queues.amqp import AMQP
from core.selectors import tenant_queue_limits

app = Celery("nooble", amqp=AMQP)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.set_default()
keeper.limits_source = tenant_queue_limits
register_tasks(app)
health.register(app)
refuse_other_transports()
