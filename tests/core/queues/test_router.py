"""Where Celery's messages go."""

from __future__ import annotations

import pytest
from celery import current_app

from core.queues.names import DOMAINS, QueueName
from core.queues.router import queue_of, route


def test_a_message_with_a_queue_keeps_it() -> None:
    assert route("agent.execute", [], {}, {"queue": "agent:demo:execute:normal"}) is None


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_probe_goes_to_the_domain_that_it_probes(domain: str) -> None:
    routed = route("core.probe", [domain], {}, {})
    assert routed is not None
    assert QueueName.parse(routed["queue"].name) == QueueName(domain, "_system", "probe", "high")


def test_everything_else_is_system_work_of_the_orchestrator() -> None:
    routed = route("celery.backend_cleanup", None, None, {})
    assert routed is not None
    assert QueueName.parse(routed["queue"].name).domain == "orchestrator"


def test_queues_of_tenants_are_never_declared() -> None:
    queue = queue_of(QueueName("agent", "demo", "execute", "normal"))
    assert queue.no_declare
    assert queue.name == "agent:demo:execute:normal"


def test_celery_asks_this_router() -> None:
    routed = current_app.amqp.router.route({}, "core.probe", args=["agent"])
    assert routed["queue"].name == "agent:_system:probe:high"
