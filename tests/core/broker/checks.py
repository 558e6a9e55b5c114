"""Properties as plain functions: tests hold them true, and false with their guard cut out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue
from kombu.transport.virtual import Message

from core.broker.scripts import ROOT
from tests.core.broker.broker import Broker

_ids = itertools.count(1)


def publish(
    connection: Connection,
    name: str,
    body: Any = ((), {}, {}),
    headers: dict[str, Any] | None = None,
    correlation_id: str = "",
    **options: Any,
) -> None:
    """A task's message, as Celery writes it."""
    task = {"task": "tests.note", "id": f"task-{next(_ids)}"}
    connection.Producer().publish(
        body,
        exchange="",
        routing_key=name,
        serializer="json",
        headers=task | (headers or {}),
        correlation_id=correlation_id or task["id"],
        **options,
    )


def take(connection: Connection, count: int, *domains: str, prefetch: int = 0) -> list[Message]:
    """That many messages, not acked."""
    got: list[Message] = []
    queues = [Queue(domain) for domain in domains]
    channel = connection.default_channel
    channel.basic_qos(0, prefetch, False)
    with Consumer(channel, queues, on_message=got.append):
        while len(got) < count:
            connection.drain_events(timeout=5)
    return got


def flood_starves_no_domain(connection: Connection) -> None:
    for number in range(50):
        publish(connection, f"orchestrator:t{number}:default:normal")
    for number in range(3):
        publish(connection, f"tool:t{number}:call:normal")
    got = take(connection, 8, "orchestrator", "tool")
    tools = [message for message in got if message.delivery_info["routing_key"].startswith("tool:")]
    assert len(tools) == 3


def paused_reply_wakes_the_tenant(connection: Connection, valkey: redis.Redis) -> None:
    """The wait is under way when the last slot is taken; its reply leaves no tenant asleep."""
    channel = connection.default_channel
    channel.brpop_timeout = 20
    got: list[Message] = []
    publish(connection, "agent:a:execute:normal")
    with Consumer(channel, [Queue("agent")], on_message=got.append, prefetch_count=2):
        while not got:
            connection.drain_events(timeout=10)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.05)
        assert channel._in_poll
        channel.basic_qos(0, 1, False)
        publish(connection, "agent:b:execute:normal")
        assert not valkey.zcard(f"{ROOT}:agent:ring")
        try:
            connection.drain_events(timeout=1)
        except TimeoutError:
            pass
        assert len(got) == 1
        assert valkey.zrange(f"{ROOT}:agent:ring", 0, -1) == [b"b"]
        got[0].ack()


# Of the scripts.


def cap_holds(broker: Broker) -> None:
    """Popped twice before either is leased: the cap is one all the same."""
    broker.limit("a", 1, 1)
    broker.put("m1", "a")
    first = broker.pop()
    broker.put("m2", "a")
    second = broker.pop()
    assert first
    assert second
    assert broker.lease(*first)
    assert not broker.lease(*second)


def capped_tenants_leave_the_ring(broker: Broker) -> None:
    broker.limit("a", 1, 1)
    broker.put("m1", "a")
    broker.put("m2", "a")
    assert broker.next()
    assert broker.pop() is None


def dead_workers_messages_come_back(broker: Broker) -> None:
    broker.put("m1", "a")
    assert broker.next("dead")
    broker.expire("dead")
    broker.reap()
    assert broker.next("alive") == ("a", "m1")


def living_workers_keep_theirs(broker: Broker) -> None:
    broker.put("m1", "a")
    assert broker.next("alive")
    assert broker.reap() == 0


def sleepers_wake(broker: Broker) -> None:
    """A worker died between the ring's reply and its lease."""
    broker.put("m1", "a")
    assert broker.pop()
    broker.repair()
    assert broker.next() == ("a", "m1")


def nobody_ends_anothers_lease(broker: Broker) -> None:
    broker.put("m1", "a")
    assert broker.next("slow")
    broker.expire("slow")
    broker.reap()
    assert broker.next("other") == ("a", "m1")
    assert not broker.settle("m1", worker="slow")
    assert broker.count("running", "a") == 1


def what_waits_is_found(broker: Broker) -> None:
    """Also when it has come back, or waits for its time."""
    broker.put("m1", "a")
    assert broker.next()
    assert broker.settle("m1", "head")
    broker.put("m2", "b", due=broker.now_ms() + 60_000)
    assert broker.present(["c-m1", "c-m2", "c-none"]) == {"c-m1", "c-m2"}


def what_is_leased_is_found(broker: Broker) -> None:
    broker.put("m1", "a")
    assert broker.next()
    assert broker.present(["c-m1"]) == {"c-m1"}


def what_is_done_is_not_found(broker: Broker) -> None:
    broker.put("m1", "a")
    assert broker.next()
    assert broker.settle("m1")
    assert broker.present(["c-m1"]) == set()


def what_is_purged_is_not_found(broker: Broker) -> None:
    broker.put("m1", "a")
    broker.put("m2", "a", due=broker.now_ms() + 60_000)
    broker.put("m3", "b")
    broker.put("m4", "b", due=broker.now_ms() + 60_000)
    assert broker.purge("a", "normal") == 2
    assert broker.purge("b") == 1
    assert broker.present(["c-m1", "c-m2", "c-m3", "c-m4"]) == {"c-m4"}
    assert broker.purge("") == 1
    assert broker.present(["c-m4"]) == set()


def what_is_dropped_frees_its_slot(broker: Broker) -> None:
    broker.limit("a", 1, 1)
    broker.put("m1", "a")
    broker.put("m2", "a")
    assert broker.next() == ("a", "m1")
    assert not broker.drop("c-m2"), "no worker has it"
    assert broker.drop("c-m1")
    assert broker.count("running", "a") == 0
    assert broker.next("other") == ("a", "m2")
    assert not broker.settle("m1")
    assert broker.count("running", "a") == 1


def ends_free_the_slot(broker: Broker) -> None:
    broker.limit("a", 1, 1)
    broker.put("m1", "a")
    broker.put("m2", "a")
    assert broker.next()
    assert broker.settle("m1")
    assert broker.next() == ("a", "m2")
