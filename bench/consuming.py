"""A process that publishes to tenants' queues and consumes them; `bench.queues` starts it.

    python -m bench.consuming throughput --url unix:///tmp/v.sock?db=1 --queues 300 [--stock]

It prints one line of JSON a result. Everything goes through kombu's public interface, for our
transport and for stock kombu alike; only the messages that wait before a measurement begins are put
in pipelines, since 100,000 publishes would take a minute.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import orjson
import redis
from django.conf import settings
from kombu import Connection, Consumer, Queue

from core.broker import limits
from core.broker.scripts import ROOT, Scripts
from core.broker.urls import broker_url

CAPPED = "agent"
UNCAPPED = "orchestrator"
UNREAD = "tool"  # no scenario consumes it
ACTION = "execute"

_PIPELINE = 1_000  # commands
_GIVE_UP = 60.0  # seconds without a message


class NoMessage(Exception):
    """No message came although some wait."""


def queue_name(domain: str, tenant: str) -> str:
    return f"{domain}:{tenant}:{ACTION}:normal"


def tenant_names(count: int) -> list[str]:
    return [f"tenant-{number}" for number in range(count)]


class Broker:
    """One database of the broker, by our transport or by stock kombu."""

    def __init__(self, url: str, *, stock: bool = False) -> None:
        self.stock = stock
        self.client = redis.Redis.from_url(url)
        self.connection = Connection(
            stock_url(url) if stock else broker_url(url), transport_options={"priority_steps": [0]}
        )
        self.connection.connect()
        self._producer = self.connection.Producer()

    def publish(self, queue: str) -> None:
        """A message as Celery makes it."""
        task = str(uuid.uuid4())
        self._producer.publish(
            _body(task),
            exchange="",
            routing_key=queue,
            serializer="json",
            correlation_id=task,
            headers=_headers(task),
        )

    def fill(self, queues: list[str], count: int) -> None:
        """So many messages, one after the other to each queue in turn."""
        template = self._template()
        scripts = Scripts(self.client)
        put: Any = scripts.put
        pipeline = self.client.pipeline(transaction=False)
        for number in range(count):
            queue = queues[number % len(queues)]
            task, tag = str(uuid.uuid4()), str(uuid.uuid4())
            properties = template["properties"] | {
                "delivery_tag": tag,
                "correlation_id": task,
                "delivery_info": {"exchange": "", "routing_key": queue},
            }
            message = orjson.dumps(template | {"properties": properties})
            if self.stock:
                pipeline.lpush(queue, message)
            else:
                domain, tenant, _, _ = queue.split(":")
                put(args=[ROOT, domain, tenant, queue, 1, tag, task, message, 0], client=pipeline)
            if (number + 1) % _PIPELINE == 0:
                pipeline.execute()
        pipeline.execute()

    def _template(self) -> dict[str, Any]:
        """What kombu puts into the broker for one publish."""
        queue = queue_name(UNREAD, "template")
        self.publish(queue)
        found: Any = self.client.lrange(queue if self.stock else f"{ROOT}:{UNREAD}:m:{queue}", 0, 0)
        self.purge(queue)
        # Ours has words before the message.
        template: dict[str, Any] = orjson.loads(found[0][found[0].index(b"{") :])
        return template

    def consumer(self, names: list[str], take: Callable[[Any], None], prefetch: int) -> Consumer:
        """Consumes the names as soon as it is entered; acks are `take`'s."""
        channel: Any = self.connection.channel()
        channel.basic_qos(0, prefetch, False)
        return Consumer(
            channel, [Queue(name, no_declare=True) for name in names], on_message=take, auto_declare=False
        )

    def drain(self, seconds: float) -> bool:
        """Waits for the next message; False when none came in time."""
        try:
            self.connection.drain_events(timeout=seconds)
        except TimeoutError:
            return False
        return True

    def purge(self, queue: str) -> None:
        channel: Any = self.connection.default_channel
        channel.queue_purge(queue)

    def must_drain(self) -> None:
        if not self.drain(_GIVE_UP):
            raise NoMessage

    def drain_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.must_drain()

    def close(self) -> None:
        self.connection.close()
        self.client.close()


def stock_url(url: str) -> str:
    """The same database, by the transport that kombu brings."""
    parts = urlsplit(url)
    return f"redis+socket://{parts.path}?virtual_host={parts.query.removeprefix('db=')}"


def _body(task: str) -> list[Any]:
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return [[], {"task_id": task, "tenant_id": "tenant-1"}, embed]


def _headers(task: str) -> dict[str, Any]:
    return {
        "lang": "py",
        "task": "core.run",
        "id": task,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "gen1@localhost",
        "ignore_result": True,
    }


# --- scenarios -----------------------------------------------------------------------------------


def throughput(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Publishes and consumes as many as each line of standard input says: one consumer, prefetch 1, acks.

    Rates are messages a second; `subscribed` is seconds from the consumer's start to its first message.
    It is ended from outside: to cancel thousands of queues takes as long as to subscribe to them.
    """
    broker = Broker(arguments.url, stock=arguments.stock)
    tenants = tenant_names(arguments.queues)
    queues = [queue_name(CAPPED, tenant) for tenant in tenants]
    if not arguments.stock:
        limits.tell_all((tenant, 1.0, 10) for tenant in tenants)
    # No queue becomes empty while it is measured.
    broker.fill(queues, max(arguments.queues, arguments.spare) + arguments.spare)
    yield {"filled": True}
    done = 0

    def take(message: Any) -> None:
        nonlocal done
        message.ack()
        done += 1

    consumer = broker.consumer(queues if broker.stock else [CAPPED], take, prefetch=1)
    subscribed = 0.0
    for line in sys.stdin:
        count = int(line)
        began = time.perf_counter()
        for number in range(count):
            broker.publish(queues[number % len(queues)])
        published = count / (time.perf_counter() - began)
        began = time.perf_counter()
        if not done:
            consumer.consume()
            broker.must_drain()
            subscribed = time.perf_counter() - began
            began = time.perf_counter()
        before = done
        while done < before + count and time.perf_counter() < began + arguments.seconds:
            broker.must_drain()
        consumed = (done - before) / (time.perf_counter() - began)
        yield {"published": published, "consumed": consumed, "subscribed": subscribed}


def fairness(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One consumer in a domain without caps: 20 tenants behind a flood of 10,000, then weights 4:1.

    `positions`: at which dispatch after its publish each of the 20 was served.
    """
    broker = Broker(arguments.url)
    served: list[str] = []

    def take(message: Any) -> None:
        served.append(message.delivery_info["routing_key"].split(":")[1])
        message.ack()

    with broker.consumer([UNCAPPED], take, prefetch=1):
        broker.fill([queue_name(UNCAPPED, "flood")], 10_000)
        broker.drain_until(lambda: len(served) == 100)
        small = [f"small-{number}" for number in range(20)]
        for tenant in small:
            broker.publish(queue_name(UNCAPPED, tenant))
        served.clear()
        broker.drain_until(lambda: len(served) == 200)
        yield {"positions": sorted(served.index(tenant) + 1 for tenant in small), "active": 1 + len(small)}

        broker.purge(UNCAPPED)
        limits.tell([("heavy", 4.0, 10), ("light", 1.0, 10)])
        broker.fill([queue_name(UNCAPPED, "light"), queue_name(UNCAPPED, "heavy")], 3_000)
        served.clear()
        broker.drain_until(lambda: len(served) == 1_000)
        yield {"heavy": served.count("heavy"), "light": served.count("light")}
        broker.purge(UNCAPPED)
    broker.close()


def capped(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Works on one capped tenant's messages, 20 to 40 ms each, until none comes for half a second.

    `held`: from when to when (the wall clock's seconds) each was in work here; a message's lease spans it.
    """
    broker = Broker(arguments.url)
    working: list[tuple[float, float, Any]] = []  # until, since, message
    held: list[tuple[float, float]] = []

    def take(message: Any) -> None:
        now = time.time()
        working.append((now + random.uniform(0.02, 0.04), now, message))

    with broker.consumer([CAPPED], take, prefetch=50):
        yield {"ready": True}
        idle_since = time.time()
        while working or time.time() - idle_since < 0.5:
            now = time.time()
            for entry in [entry for entry in working if entry[0] <= now]:
                working.remove(entry)
                held.append((entry[1], time.time()))
                entry[2].ack()
            if broker.drain(
                max(0.001, min((entry[0] for entry in working), default=now + 0.1) - time.time())
            ):
                idle_since = time.time()
    yield {"held": held}
    broker.close()


def holding(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Leases as many messages as there are, says so at every change, and acks none."""
    broker = Broker(arguments.url)
    tasks: list[tuple[str, float]] = []

    def take(message: Any) -> None:
        tasks.append((message.properties["correlation_id"], time.time()))

    with broker.consumer([UNCAPPED], take, prefetch=1_000):
        yield {"ready": True}
        while True:
            before = len(tasks)
            while broker.drain(0.2):
                pass
            if len(tasks) > before:
                yield {"tasks": tasks}


def filling(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Tells the limits of `queues` tenants, and puts `spare` messages into the first one's queue."""
    broker = Broker(arguments.url)
    tenants = tenant_names(arguments.queues)
    limits.tell_all((tenant, 1.0, arguments.cap) for tenant in tenants)
    broker.fill([queue_name(arguments.domain, tenants[0])], arguments.spare)
    yield {"filled": True}
    broker.close()


SCENARIOS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    scenario.__name__: scenario for scenario in (throughput, fairness, capped, holding, filling)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.consuming")
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--url", required=True, help="unix:///path?db=N")
    parser.add_argument("--stock", action="store_true", help="stock kombu's transport")
    parser.add_argument("--queues", type=int, default=1, help="one a tenant")
    parser.add_argument("--spare", type=int, default=0, help="messages that wait before the first publish")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most, for each measurement")
    parser.add_argument("--domain", default=UNCAPPED)
    parser.add_argument("--cap", type=int, default=10)
    arguments = parser.parse_args()
    settings.configure(REDIS_URL=arguments.url, CELERY_WORKER_CONCURRENCY=100)
    for result in SCENARIOS[arguments.scenario](arguments):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
