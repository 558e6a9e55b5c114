"""Threads and a Valkey that is there, away, or frozen."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from signal import Signals

import pytest
import redis
from celery import current_app
from kombu import Connection, Producer
from kombu.exceptions import OperationalError
from pytest_django import Settings

from core import valkey
from core.breaker import Breaker
from core.broker import keeper as keepers
from core.broker.scripts import ROOT
from core.broker.urls import broker_url
from core.queues.names import QueueName
from core.queues.publisher import publish
from core.valkey import Client
from tests.core.broker.conftest import quiet
from tests.core.broker.server import Server

LONG = 3600.0


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("valkey"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Of a process that has met no trouble yet; what is waited for is short, the pause is without end."""
    breaker = Breaker(0.2, LONG, waited=redis.TimeoutError, away=redis.ConnectionError)
    monkeypatch.setattr(valkey, "_breaker", breaker)
    monkeypatch.setattr(valkey, "PATIENCE", 0.2)
    made = Client.of(server.url, max_connections=8)
    yield made
    made.close()
    made.connection_pool.disconnect()


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """The server takes connections and says nothing."""
    assert server._process is not None
    os.kill(server._process.pid, Signals.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server._process.pid, Signals.SIGCONT)


def pass_the_pause() -> None:
    valkey._breaker._away_until = min(valkey._breaker._away_until, 1e-9)


def test_a_frozen_server_is_waited_for_once(client: Client, server: Server) -> None:
    client.set("key", 1)
    with frozen(server):
        with pytest.raises(redis.TimeoutError):
            client.get("key")
        assert valkey._breaker.is_away()
        for ask in (lambda: client.get("key"), client.pipeline().get("key").execute):
            with pytest.raises(redis.ConnectionError, match="has just not answered"):
                ask()


def test_a_pipeline_and_a_new_connection_wait_no_longer(client: Client, server: Server) -> None:
    with frozen(server), pytest.raises(redis.TimeoutError):
        client.pipeline(transaction=False).get("key").execute()
    assert valkey._breaker.is_away()


def test_after_the_pause_it_is_asked_again(client: Client, server: Server) -> None:
    with frozen(server):
        with pytest.raises(redis.TimeoutError):
            client.get("key")
        pass_the_pause()
        assert not valkey._breaker.is_away()
        with pytest.raises(redis.TimeoutError):
            client.get("key")
        assert valkey._breaker.is_away()
    pass_the_pause()
    assert client.get("key") is None
    assert not valkey._breaker.is_away()
    assert client.set("key", 1)


def test_after_the_pause_one_thread_tries_for_all(client: Client, server: Server) -> None:
    with frozen(server):
        with pytest.raises(redis.TimeoutError):
            client.get("key")
        pass_the_pause()
        start, errors = threading.Barrier(8), []

        def ask() -> None:
            start.wait()
            try:
                client.get("key")
            except redis.RedisError as error:
                errors.append(type(error))

        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(ask)
        assert sorted(errors, key=str) == [redis.ConnectionError] * 7 + [redis.TimeoutError]


def test_a_server_that_refuses_connections_is_asked_as_ever(client: Client, server: Server) -> None:
    assert client.set("key", 1)
    server.kill()
    for _ in range(3):
        with pytest.raises(redis.ConnectionError, match=r"connecting to|closed by server"):
            client.get("key")
        assert not valkey._breaker.is_away()
    server.start()
    assert client.get("key") == b"1"


def test_what_the_server_refuses_is_an_answer(client: Client) -> None:
    client.set("key", "text")
    with pytest.raises(redis.ResponseError):
        client.incr("key")
    assert not valkey._breaker.is_away()


# Publishing.


@pytest.fixture
def connection(
    client: Client, server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Connection]:
    """The process publishes to this server, and has not yet spoken with it."""
    settings.REDIS_URL = server.url
    monkeypatch.setattr(keepers, "_keeper", None)
    monkeypatch.setattr(valkey, "client", lambda: client)
    options = settings.CELERY_BROKER_TRANSPORT_OPTIONS
    with Connection(broker_url(server.url), transport_options=options) as made:
        monkeypatch.setattr(current_app, "producer_or_acquire", lambda: nullcontext(Producer(made)))
        yield made
    quiet(keepers._keeper)


def send() -> None:
    publish("agent.execute", uuid.uuid4(), "demo", QueueName("agent", "demo", "execute", "normal"))


def test_a_message_is_published(connection: Connection, client: Client) -> None:
    send()
    send()
    assert client.get(f"{ROOT}:agent:total") == b"2"


def test_a_frozen_server_holds_up_a_first_message_no_longer(connection: Connection, server: Server) -> None:
    """Kombu's own timeout is longer: it must not come to that."""
    with frozen(server), pytest.raises(OperationalError, match="Timeout"):
        send()
    assert valkey._breaker.is_away()
    assert not connection.connected


def test_a_frozen_server_holds_up_a_message_no_longer(connection: Connection, server: Server) -> None:
    send()
    with frozen(server):
        with pytest.raises(OperationalError, match="Timeout"):
            send()
        assert valkey._breaker.is_away()
        with pytest.raises(OperationalError, match="has just not answered"):
            send()


def test_after_the_pause_messages_flow_again(connection: Connection, client: Client, server: Server) -> None:
    send()
    with frozen(server), pytest.raises(OperationalError):
        send()
    pass_the_pause()
    send()
    assert not valkey._breaker.is_away()
    # The one that was given up may have arrived: whoever claims its task second finds nothing.
    assert client.get(f"{ROOT}:agent:total") in (b"2", b"3")


def test_a_dead_server_is_found_again_at_once(connection: Connection, client: Client, server: Server) -> None:
    send()
    server.kill()
    with pytest.raises(OperationalError):
        send()
    server.start()
    send()
    assert client.get(f"{ROOT}:agent:total") == b"2"
