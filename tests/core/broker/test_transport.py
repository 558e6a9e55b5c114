"""Publishing, consuming and leases through kombu, on a real Valkey."""

from __future__ import annotations

import datetime
import inspect
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from celery import Celery
from django.db import OperationalError as DatabaseError
from kombu import Connection, Consumer, Queue
from kombu.exceptions import OperationalError
from kombu.transport.virtual import Message
from pytest_django import Settings

from core.broker import doctor, transport
from core.broker import keeper as keeper_module
from core.broker.keeper import Keeper
from core.broker.scripts import ROOT
from core.broker.urls import broker_url
from core.queues.names import DOMAINS
from tests.core.broker.checks import flood_starves_no_domain, paused_reply_wakes_the_tenant, publish, take
from tests.core.broker.conftest import quiet
from tests.core.broker.server import Server, eventually
from tests.core.broker.worker_app import make_app

A, B = "agent:a:execute:normal", "agent:b:execute:normal"


def keeper() -> Keeper:
    assert keeper_module._keeper is not None
    return keeper_module._keeper


def leases(client: redis.Redis) -> int:
    return sum(client.hlen(key) for key in client.scan_iter(f"{ROOT}:w:*"))


def running(client: redis.Redis, tenant: str, domain: str = "agent") -> int:
    return int(client.hget(f"{ROOT}:{domain}:running", tenant) or 0)


def waiting(client: redis.Redis, queue: str) -> list[bytes]:
    return client.lrange(f"{ROOT}:{queue.split(':')[0]}:m:{queue}", 0, -1)


def dead(client: redis.Redis) -> list[bytes]:
    return client.lrange(f"{ROOT}:dead", 0, -1)


@contextmanager
def consuming(connection: Connection, *queues: str, prefetch: int = 0) -> Iterator[list[Message]]:
    got: list[Message] = []
    consumer = Consumer(
        connection, [Queue(name) for name in queues], on_message=got.append, prefetch_count=prefetch or None
    )
    with consumer:
        yield got


# Names.


def test_a_message_keeps_its_real_name(connection: Connection) -> None:
    publish(connection, A)
    [message] = take(connection, 1, "agent")
    assert message.delivery_info["routing_key"] == A


def test_one_consumer_serves_several_domains(connection: Connection) -> None:
    names = {A, B, "tool:a:call:high", "orchestrator:_system:probe:low"}
    for name in names:
        publish(connection, name)
    got = take(connection, 4, "agent", "tool", "orchestrator")
    assert {message.delivery_info["routing_key"] for message in got} == names


def test_a_flooded_domain_does_not_starve_another(connection: Connection) -> None:
    flood_starves_no_domain(connection)


def test_publishing_declares_nothing_per_tenant(connection: Connection, valkey: redis.Redis) -> None:
    for number in range(20):
        publish(connection, f"agent:t{number}:execute:normal")
    assert not valkey.keys("_kombu*")


@pytest.mark.parametrize("domain", DOMAINS)
def test_nobody_publishes_to_a_bare_domain(connection: Connection, domain: str) -> None:
    with pytest.raises(OperationalError, match="is a domain"):
        publish(connection, domain)


def test_nobody_consumes_one_tenants_queue(connection: Connection) -> None:
    with pytest.raises(ValueError, match="-Q agent"):
        Consumer(connection, [Queue(A)]).consume()


@pytest.mark.parametrize("name", ["plain", "agent:demo", "agent:DEMO:execute:normal", "a:b:c:d:e"])
def test_any_other_queue_is_stock_kombus(connection: Connection, valkey: redis.Redis, name: str) -> None:
    for _ in range(3):
        publish(connection, name)
    assert valkey.llen(name) == 3
    with consuming(connection, name, prefetch=1) as got:
        while not got:
            connection.drain_events(timeout=10)
        assert valkey.hlen("unacked") == 1
        got[0].ack()
        assert valkey.hlen("unacked") == 0
    channel = connection.default_channel
    assert channel.queue_purge(name) == 2
    assert valkey.llen(name) == 0
    assert leases(valkey) == 0


def test_plain_queues_and_domains_mix_on_one_connection(connection: Connection, valkey: redis.Redis) -> None:
    for _ in range(3):
        publish(connection, A)
        publish(connection, "plain")
    got = take(connection, 6, "agent", "plain")
    assert sorted(message.delivery_info["routing_key"] for message in got) == [A] * 3 + ["plain"] * 3
    for message in got:
        message.ack()
    assert (leases(valkey), valkey.hlen("unacked")) == (0, 0)


def test_an_empty_plain_queue_beside_a_domain_does_not_slow_it(connection: Connection) -> None:
    """Who has work does not wait for what has none: 100 messages are no matter of 20 seconds."""
    for number in range(100):
        publish(connection, f"tool:t{number}:call:normal")
    started = time.monotonic()
    take(connection, 100, "tool", "plain")
    assert time.monotonic() - started < 10


# Sizes, purges, deletes.


def test_sizes_and_purges(connection: Connection, valkey: redis.Redis) -> None:
    channel = connection.default_channel
    for name in (A, A, B, "tool:a:call:low", "plain"):
        publish(connection, name)

    def sizes() -> list[int]:
        names = (A, B, "agent", "tool", "plain")
        return [channel.queue_declare(name, passive=True).message_count for name in names]

    assert sizes() == [2, 1, 3, 1, 1]
    assert channel.queue_purge(A) == 2
    assert sizes() == [0, 1, 1, 1, 1]
    assert channel.queue_purge("agent") == 1
    assert sizes() == [0, 0, 0, 1, 1]
    assert channel.queue_purge("agent") == 0
    assert not valkey.zcard(f"{ROOT}:agent:ring")


def test_a_purge_of_a_domain_takes_the_delayed_with_it(connection: Connection, valkey: redis.Redis) -> None:
    publish(connection, A, headers={"eta": "2999-01-01T00:00:00+00:00"})
    assert valkey.zcard(f"{ROOT}:agent:delayed") == 1
    connection.default_channel.queue_purge("agent")
    assert not valkey.exists(f"{ROOT}:waiting")
    assert valkey.zcard(f"{ROOT}:agent:delayed") == 0


def test_a_purge_of_one_queue_takes_its_delayed_with_it(connection: Connection, valkey: redis.Redis) -> None:
    for name in (A, B):
        publish(connection, name, headers={"eta": "2999-01-01T00:00:00+00:00"})
    connection.default_channel.queue_purge(A)
    assert valkey.scard(f"{ROOT}:waiting") == 1
    assert valkey.zcard(f"{ROOT}:agent:delayed") == 1


def test_running_messages_survive_a_purge(connection: Connection, valkey: redis.Redis) -> None:
    publish(connection, A)
    publish(connection, A)
    [message] = take(connection, 1, "agent", prefetch=1)
    assert connection.default_channel.queue_purge("agent") == 1
    assert running(valkey, "a") == 1
    message.ack()
    assert running(valkey, "a") == 0


@pytest.mark.parametrize("name", ["agent", A])
def test_deleting_one_of_our_queues_loses_no_message(
    connection: Connection, valkey: redis.Redis, name: str
) -> None:
    publish(connection, A)
    Queue(name, channel=connection.default_channel).delete()
    assert len(waiting(valkey, A)) == 1


def test_deleting_a_plain_queue_removes_it(connection: Connection, valkey: redis.Redis) -> None:
    queue = Queue("plain", exchange="plain", routing_key="plain", channel=connection.default_channel)
    queue.declare()
    publish(connection, "plain")
    queue.delete()
    assert valkey.llen("plain") == 0


def test_one_message_can_be_fetched_without_consuming(connection: Connection, valkey: redis.Redis) -> None:
    publish(connection, A)
    message = connection.default_channel.basic_get("agent")
    assert message.delivery_info["routing_key"] == A
    assert connection.default_channel.basic_get("agent") is None
    message.ack()
    assert leases(valkey) == 0


def test_a_fetch_of_what_nobody_can_read_keeps_no_slot(connection: Connection, valkey: redis.Redis) -> None:
    publish(connection, A, headers={"task": None})
    assert connection.default_channel.basic_get("agent") is None
    assert (leases(valkey), len(dead(valkey))) == (0, 1)


# Leases.


def test_an_ack_frees_the_slot_and_wakes_the_tenant(connection: Connection, valkey: redis.Redis) -> None:
    valkey.hset(f"{ROOT}:limits", "a", "1 1")
    publish(connection, A)
    publish(connection, A)
    [message] = take(connection, 1, "agent")
    assert running(valkey, "a") == 1
    assert valkey.zcard(f"{ROOT}:agent:ring") == 0
    message.ack()
    assert running(valkey, "a") == 0
    assert valkey.zrange(f"{ROOT}:agent:ring", 0, -1) == [b"a"]


def test_a_requeued_message_is_the_next(connection: Connection, valkey: redis.Redis) -> None:
    for number in range(3):
        publish(connection, A, headers={"id": str(number)})
    [message] = take(connection, 1, "agent", prefetch=1)
    message.requeue()
    assert leases(valkey) == 0
    assert [m.headers["id"] for m in take(connection, 3, "agent")] == ["0", "1", "2"]


def test_a_rejected_message_is_a_dead_letter(connection: Connection, valkey: redis.Redis) -> None:
    publish(connection, A)
    [message] = take(connection, 1, "agent")
    message.reject()
    [letter] = dead(valkey)
    assert letter.startswith(A.encode() + b"|rejected|")
    assert leases(valkey) == 0


def entry_with(**changes: Any) -> Callable[[bytes], bytes]:
    def change(entry: bytes) -> bytes:
        *head, message = entry.split(b"|", 4)
        fields = json.loads(message) | changes
        return b"|".join([*head, json.dumps({k: v for k, v in fields.items() if v is not None}).encode()])

    return change


def entry_of(message: bytes) -> Callable[[bytes], bytes]:
    return lambda entry: b"|".join([*entry.split(b"|", 4)[:4], message])


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda entry: b"\x80\x04\x95", id="bytes"),
        pytest.param(entry_of(b"\xff\xfe{"), id="bytes in an entry"),
        pytest.param(entry_of(b"[]"), id="a list"),
        pytest.param(entry_of(b"null"), id="null"),
        pytest.param(entry_with(body=None), id="no body"),
        pytest.param(entry_with(headers=None), id="no headers"),
        pytest.param(entry_with(properties=None), id="no properties"),
        pytest.param(entry_with(properties={}), id="no delivery tag"),
        pytest.param(entry_with(**{"content-type": "application/x-python-serialize"}), id="pickle"),
        pytest.param(entry_with(body="%%%"), id="not base64"),
        pytest.param(entry_with(body="AAAA"), id="base64 of garbage"),
        pytest.param(entry_with(body=7), id="a number as body"),
    ],
)
def test_what_nobody_can_read_is_a_dead_letter_and_the_worker_goes_on(
    connection: Connection, valkey: redis.Redis, spoil: Callable[[bytes], bytes]
) -> None:
    publish(connection, A)
    key = f"{ROOT}:agent:m:{A}"
    valkey.lset(key, 0, spoil(valkey.lindex(key, 0)))
    publish(connection, B)
    [message] = take(connection, 1, "agent")
    message.ack()
    assert message.delivery_info["routing_key"] == B
    assert len(dead(valkey)) == 1
    assert leases(valkey) == 0
    assert running(valkey, "a") == 0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"body": [[float("nan")], {}, {}]}, id="NaN"),
        pytest.param({"body": [["\ud800"], {}, {}]}, id="a lone surrogate"),
        pytest.param({"body": [[2**70], {}, {}]}, id="a large number"),
        pytest.param({"compression": "gzip"}, id="compressed"),
        pytest.param({"correlation_id": "one|two"}, id="a bar in the task's id"),
    ],
)
def test_whatever_celery_can_publish_a_worker_gets(connection: Connection, options: dict[str, Any]) -> None:
    publish(connection, A, **options)
    [message] = take(connection, 1, "agent")
    assert message.decode() is not None
    message.ack()


def test_a_late_ack_changes_nothing(connection: Connection, valkey: redis.Redis) -> None:
    """The lease was taken back, and somebody else has it."""
    publish(connection, A)
    [message] = take(connection, 1, "agent")
    quiet(keeper())
    valkey.zadd(f"{ROOT}:workers", {keeper().worker: 1})
    assert keeper().scripts.reap(args=[ROOT, 10]) == 1
    other = Keeper(valkey)
    [(tenant, start)] = valkey.zpopmin(f"{ROOT}:agent:ring")
    leased = other.lease("agent", tenant.decode(), start)
    assert leased
    message.ack()
    assert running(valkey, "a") == 1
    assert leases(valkey) == 1
    other.settle(leased[1])
    assert running(valkey, "a") == 0


def test_closing_a_connection_gives_nothing_back(connection: Connection, valkey: redis.Redis) -> None:
    publish(connection, A)
    [message] = take(connection, 1, "agent")
    connection.close()
    assert waiting(valkey, A) == []
    assert leases(valkey) == 1
    message.ack()
    assert leases(valkey) == 0


def test_recovering_a_channel_gives_no_running_message_back(
    connection: Connection, valkey: redis.Redis
) -> None:
    publish(connection, A)
    [message] = take(connection, 1, "agent")
    message.channel.basic_recover(requeue=True)
    assert waiting(valkey, A) == []
    message.ack()
    assert leases(valkey) == 0


def test_a_message_for_a_domain_that_is_no_longer_consumed_goes_back(
    connection: Connection, valkey: redis.Redis
) -> None:
    channel = connection.default_channel
    channel.brpop_timeout = 10
    consumer = Consumer(channel, [Queue("agent"), Queue("tool")], on_message=lambda message: None)
    consumer.consume()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.05)
    consumer.cancel_by_queue("agent")
    publish(connection, A)
    for _ in range(3):
        try:
            connection.drain_events(timeout=0.2)
        except TimeoutError:
            break
        finally:
            channel.brpop_timeout = 1
    assert len(waiting(valkey, A)) == 1
    assert leases(valkey) == 0
    consumer.cancel()


def test_a_reply_that_comes_while_nothing_may_be_consumed_wakes_the_tenant(
    connection: Connection, valkey: redis.Redis
) -> None:
    paused_reply_wakes_the_tenant(connection, valkey)


def test_a_lease_that_nobody_knows_comes_back(connection: Connection, valkey: redis.Redis) -> None:
    """The reply to a lease was lost: the message is in the worker's hash, and no task runs."""
    with consuming(connection, "tool"):
        publish(connection, A)
        [(tenant, start)] = valkey.zpopmin(f"{ROOT}:agent:ring")
        lost = keeper().lease("agent", tenant.decode(), start)
        assert lost
        keeper()._held.pop(lost[1], None)
        eventually(lambda: waiting(valkey, A))
        assert leases(valkey) == 0


def test_what_runs_is_renewed_and_never_taken_for_unknown(
    connection: Connection, valkey: redis.Redis
) -> None:
    publish(connection, A)
    [message] = take(connection, 1, "agent")
    first = valkey.zscore(f"{ROOT}:workers", keeper().worker)
    eventually(lambda: valkey.zscore(f"{ROOT}:workers", keeper().worker) > first + 300)
    assert leases(valkey) == 1
    message.ack()


def test_what_is_delayed_is_put_when_it_is_due(connection: Connection, valkey: redis.Redis) -> None:
    seconds, _ = valkey.time()
    due = datetime.datetime.fromtimestamp(seconds + 2, datetime.UTC)
    publish(connection, A, headers={"eta": due.isoformat()})
    assert valkey.zcard(f"{ROOT}:agent:delayed") == 1
    [message] = take(connection, 1, "agent")
    assert valkey.time()[0] >= seconds + 2
    message.ack()


# The keeper.


@pytest.fixture
def own_connection(
    server: Server, hurry: None, settings: Settings
) -> Iterator[tuple[Connection, redis.Redis]]:
    """A connection to a server that the test may kill."""
    settings.REDIS_URL = server.url
    options = settings.CELERY_BROKER_TRANSPORT_OPTIONS
    with (
        Connection(broker_url(server.url), transport_options=options) as opened,
        redis.Redis.from_url(server.url) as client,
    ):
        yield opened, client
        quiet(keeper_module._keeper)


@pytest.mark.parametrize("end", ["ack", "requeue", "reject"])
def test_an_end_that_the_broker_did_not_hear_is_told_later(
    own_connection: tuple[Connection, redis.Redis], server: Server, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection, client = own_connection
    publish(connection, A)
    [message] = take(connection, 1, "agent")
    server.kill()
    with caplog.at_level(logging.WARNING):
        getattr(message, end)()
    assert "told later" in caplog.text
    server.start()
    eventually(lambda: not leases(client) and not running(client, "a"))
    assert len(waiting(client, A)) == (end == "requeue")
    assert len(dead(client)) == (end == "reject")


def test_a_database_that_is_away_stops_no_renewal(
    connection: Connection, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits come from the database; the leases do not."""
    asked = []

    def away() -> Any:
        asked.append(1)
        raise DatabaseError

    monkeypatch.setattr(keeper_module, "limits_source", away)
    monkeypatch.setattr(keeper_module, "are_told", lambda: False)
    with consuming(connection, "agent"):
        eventually(lambda: len(asked) > 2)
        thread = keeper()._thread
        assert thread is not None
        assert thread.is_alive()


def test_a_process_that_ends_gives_back_what_it_has_not_done(
    connection: Connection, valkey: redis.Redis
) -> None:
    for number in range(3):
        publish(connection, A, headers={"id": str(number)})
    got = take(connection, 3, "agent")
    got[0].ack()
    quiet(keeper())
    keeper().give_back()
    assert len(waiting(valkey, A)) == 2
    assert leases(valkey) == 0


def test_a_process_that_ends_does_not_wait_for_a_broker_that_is_away(
    own_connection: tuple[Connection, redis.Redis], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One try is enough: the leases run out by themselves."""
    connection, _ = own_connection
    for _ in range(5):
        publish(connection, A)
    take(connection, 5, "agent")
    quiet(keeper())
    server.kill()
    tries: list[str] = []
    settle = keeper().scripts.settle
    monkeypatch.setattr(
        keeper().scripts, "settle", lambda *, args: (tries.append(args[2]), settle(args=args))[1]
    )
    keeper().give_back()
    server.start()
    assert len(tries) == 1


def test_dead_workers_without_work_hide_none_with_work(connection: Connection, valkey: redis.Redis) -> None:
    """They stand in front of the dead one, and one reaping is enough for all."""
    publish(connection, A)
    dead_one = Keeper(valkey)
    [(tenant, start)] = valkey.zpopmin(f"{ROOT}:agent:ring")
    assert dead_one.lease("agent", tenant.decode(), start)
    valkey.zadd(f"{ROOT}:workers", {f"idle-{number}": 1 for number in range(20)})
    valkey.zadd(f"{ROOT}:workers", {dead_one.worker: 2})
    assert dead_one.scripts.reap(args=[ROOT, 10]) == 1
    assert len(waiting(valkey, A)) == 1


# Celery.


def test_a_queues_full_name_is_enough_to_publish(connection: Connection, other_database: str) -> None:
    """What `task.retry` and `apply_async(queue=...)` do; and the app does not grow by it."""
    app: Celery = make_app(other_database)
    known = len(app.amqp.queues)
    app.send_task("tests.note", queue=A)
    assert len(app.amqp.queues) == known
    [message] = take(connection, 1, "agent")
    assert message.delivery_info["routing_key"] == A
    message.ack()


def test_a_task_without_a_route_goes_to_the_orchestrator(connection: Connection, other_database: str) -> None:
    make_app(other_database).send_task("tests.note")
    [message] = take(connection, 1, "orchestrator")
    assert message.delivery_info["routing_key"] == "orchestrator:_system:default:normal"
    message.ack()


# Kombu.


def test_kombu_has_the_shape_that_the_transport_was_written_for() -> None:
    found = doctor.shapes_of_kombu()
    assert found.verdict is doctor.Verdict.OK, f"{found.text}: {found.remedy}"


def test_the_installed_versions_are_those_it_was_written_for() -> None:
    found = doctor.versions()
    assert found.verdict is doctor.Verdict.OK, found.text


def test_every_method_that_the_transport_overrides_is_watched() -> None:
    ours = (transport.QoS, transport.Channel, transport.Poller, transport.Transport)
    overridden = {
        getattr(cls.__mro__[1], name)
        for cls in ours
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and hasattr(cls.__mro__[1], name)
    }
    assert overridden <= {doctor.method(name) for name in doctor.SHAPES}


def test_a_changed_shape_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.SHAPES, "redis.Channel._size", "(self, queue, more)")
    monkeypatch.setitem(doctor.NAMES, "redis.Channel._size", ("no_such_name",))
    found = doctor.shapes_of_kombu()
    assert found.verdict is doctor.Verdict.FAIL
    assert "redis.Channel._size(self, queue, more) is now (self, queue)" in found.text
    assert "no_such_name" in found.text
