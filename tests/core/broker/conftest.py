"""Brokers that no worker of the platform consumes, and the process's keeper in a hurry."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis
from django.conf import settings
from kombu import Connection
from pytest_django import Settings

from core.broker import keeper as keeper_module
from core.broker.keeper import Keeper
from core.broker.urls import broker_url
from tests.core.broker.server import Server

OTHER = "13"


@pytest.fixture
def other_database() -> Iterator[str]:
    """The URL of an empty database beside the platform's."""
    parts = urlsplit(settings.REDIS_URL)
    unix = parts.scheme == "unix"
    url = f"unix://{parts.path}?db={OTHER}" if unix else parts._replace(path=f"/{OTHER}").geturl()
    client = redis.Redis.from_url(url)
    assert client.dbsize() == 0
    yield url
    client.flushdb()
    client.close()


@pytest.fixture
def valkey(other_database: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(other_database) as client:
        yield client


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the keeper become hundredths; nobody knows limits; leases end with the test."""
    monkeypatch.setattr(keeper_module, "DUE_SECONDS", 0.02)
    monkeypatch.setattr(keeper_module, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(keeper_module, "REPAIR_SECONDS", 0.1)
    monkeypatch.setattr(keeper_module, "limits_source", None)
    monkeypatch.setattr(keeper_module, "_keeper", None)


def quiet(keeper: Keeper | None) -> None:
    """The process goes on, its keeper does not."""
    if keeper is not None:
        keeper._stop.set()
        if keeper._thread is not None:
            keeper._thread.join(20)
        atexit.unregister(keeper.give_back)
        keeper.client.connection_pool.disconnect()
        keeper.publishing.connection_pool.disconnect()


@pytest.fixture
def connection(other_database: str, hurry: None, settings: Settings) -> Iterator[Connection]:
    """A connection as Celery opens it."""
    settings.REDIS_URL = other_database
    options = settings.CELERY_BROKER_TRANSPORT_OPTIONS
    with Connection(broker_url(other_database), transport_options=options) as opened:
        yield opened
        quiet(keeper_module._keeper)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("valkey"))
    made.start()
    yield made
    made.kill()
