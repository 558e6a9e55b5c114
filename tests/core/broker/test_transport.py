"""Messages keep their four-part name and wait in their domain's list, on a real Valkey."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue

from core.broker.urls import broker_url
from core.queues.names import QueueName
from core.queues.router import queue_of


@pytest.fixture
def valkey(other_database: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(other_database)
    yield client
    client.close()


@pytest.fixture
def connection(other_database: str) -> Iterator[Connection]:
    options = {"priority_steps": [0], "socket_timeout": 5}
    with Connection(broker_url(other_database), transport_options=options) as opened:
        yield opened


def publish(connection: Connection, name: str, body: Any, **options: Any) -> None:
    queue = queue_of(QueueName.parse(name))
    producer = connection.Producer()
    producer.publish(body, exchange="", routing_key=queue.name, serializer="json", **options)


def test_a_tenants_message_waits_in_its_domains_list_and_keeps_its_name(
    connection: Connection, valkey: redis.Redis
) -> None:
    publish(connection, "agent:demo:execute:normal", {"n": 1})
    assert valkey.keys("*") == [b"agent"]
    [waiting] = valkey.lrange("agent", 0, -1)
    assert json.loads(waiting)["properties"]["delivery_info"]["routing_key"] == "agent:demo:execute:normal"


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_every_priority_waits_in_the_one_list(
    connection: Connection, valkey: redis.Redis, priority: int
) -> None:
    publish(connection, "agent:demo:execute:high", {}, priority=priority)
    assert valkey.keys("*") == [b"agent"]


def test_every_domain_has_its_list(connection: Connection, valkey: redis.Redis) -> None:
    publish(connection, "agent:demo:execute:normal", {})
    publish(connection, "orchestrator:demo:websocket_send:high", {})
    publish(connection, "orchestrator:other:websocket_send:high", {})
    assert (valkey.llen("agent"), valkey.llen("orchestrator")) == (1, 2)


def test_publishing_declares_nothing_per_tenant(connection: Connection, valkey: redis.Redis) -> None:
    for number in range(20):
        publish(connection, f"agent:tenant-{number}:execute:normal", {})
    assert valkey.keys("*") == [b"agent"]


def test_who_consumes_a_domain_gets_every_tenants_messages_in_order(connection: Connection) -> None:
    names = ["agent:a:execute:low", "agent:b:execute:high", "agent:a:execute:normal"]
    for number, name in enumerate(names):
        publish(connection, name, {"n": number})
    got: list[tuple[int, str]] = []

    def take(body: dict[str, int], message: Any) -> None:
        got.append((body["n"], message.delivery_info["routing_key"]))
        message.ack()

    with Consumer(connection, [Queue("agent")], callbacks=[take]):
        while len(got) < 3:
            connection.drain_events(timeout=10)
    assert got == list(enumerate(names))


def test_a_message_that_was_not_acknowledged_comes_back_to_its_domain(
    connection: Connection, valkey: redis.Redis
) -> None:
    publish(connection, "agent:demo:execute:normal", {"n": 1})
    got: list[Any] = []
    with Consumer(connection, [Queue("agent")], callbacks=[lambda body, message: got.append(message)]):
        while not got:
            connection.drain_events(timeout=10)
        assert valkey.llen("agent") == 0
        got[0].requeue()
    assert valkey.llen("agent") == 1
    [waiting] = valkey.lrange("agent", 0, -1)
    assert json.loads(waiting)["properties"]["delivery_info"]["routing_key"] == "agent:demo:execute:normal"


@pytest.mark.parametrize("name", ["celery", "agent:demo", "reply.celery.pidbox", "agent:DEMO:execute:normal"])
def test_any_other_queue_stays_what_it_is(connection: Connection, valkey: redis.Redis, name: str) -> None:
    queue = connection.SimpleQueue(name)
    queue.put({"n": 1})
    assert valkey.llen(name) == 1
    assert queue.get(timeout=10).payload == {"n": 1}
    queue.close()
