"""Celery: a messenger. What runs, and how it ended, is told by the Task row."""

import time

from celery.beat import BeatLazyFunc
from kombu import Queue

from core.broker.urls import broker_url
from core.queues.names import DOMAINS
from nooble.settings.database import REDIS_URL

CELERY_BROKER_URL = broker_url(REDIS_URL)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 5,
    "socket_connect_timeout": 1,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "max_retries": 0,  # who publishes is told at once; the row waits, not a request
    "priority_steps": [0],  # the queue's name carries the priority
}
CELERY_TASK_QUEUES = [Queue(domain) for domain in DOMAINS]
CELERY_TASK_CREATE_MISSING_QUEUES = False
CELERY_TASK_ROUTES = ["core.queues.router.route"]
CELERY_TASK_DEFAULT_QUEUE = "orchestrator"
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_PUBLISH_RETRY = False
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_POOL = "threads"
CELERY_WORKER_CONCURRENCY = 100
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Celery leaves a worker one free slot after a reconnect, even a full one; the transport counts what runs.
CELERY_WORKER_ENABLE_PREFETCH_COUNT_REDUCTION = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_BEAT_SCHEDULER = "celery.beat:Scheduler"  # the schedule is code: no state file
CELERY_BEAT_SCHEDULE = {
    f"probe-{domain}": {"task": "core.probe", "schedule": 10.0, "args": [domain, BeatLazyFunc(time.time)]}
    for domain in DOMAINS
} | {
    # A round that nobody has begun by the next one is not needed any more.
    "sessions": {"task": "conversations.round", "schedule": 60.0, "options": {"expires": 60.0}},
    "batches": {"task": "batch.round", "schedule": 60.0, "options": {"expires": 60.0}},
}
CELERY_TIMEZONE = "UTC"
