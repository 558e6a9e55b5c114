"""The Celery app, in every process: the web publishes with it, workers consume."""

from celery import Celery

from core import health
from core.actions.worker import register_tasks

app = Celery("nooble")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.set_default()
register_tasks(app)
health.register(app)
