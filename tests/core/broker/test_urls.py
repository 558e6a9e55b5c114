"""REDIS_URL in the dialects of its readers."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
import redis
from django.conf import settings
from kombu import Connection

from core.broker.transport import Transport
from core.broker.urls import broker_url, channels_host
from core.queues.names import DOMAINS


@pytest.mark.parametrize(
    "url",
    [
        "redis://example.org:6380/2",
        "redis://example.org",
        "rediss://example.org:6380/2",
        "unix:///run/valkey.sock?db=3",
        "unix:///run/valkey.sock",
        "unix:///with%20space/valkey.sock?db=3",
    ],
)
def test_every_dialect_leads_to_our_transport(url: str) -> None:
    assert isinstance(Connection(broker_url(url)).transport, Transport)


@pytest.mark.parametrize(
    ("url", "host", "port", "database"),
    [
        ("redis://example.org:6380/2", "example.org", 6380, "2"),
        ("redis://example.org", "example.org", None, "0"),
        ("rediss://example.org:6380/2", "example.org", 6380, "2"),
        ("redis://example.org?db=1", "example.org", None, "1"),
        ("redis://example.org:6380/?db=1", "example.org", 6380, "1"),
        ("redis://example.org/2?db=1&socket_timeout=5", "example.org", None, "1"),
        ("rediss://example.org?db=1&ssl_cert_reqs=none", "example.org", None, "1"),
    ],
)
def test_host_port_and_database_survive(url: str, host: str, port: int | None, database: str | None) -> None:
    connection = Connection(broker_url(url))
    assert (connection.hostname, connection.port) == (host, port)
    assert (connection.virtual_host or "/").strip("/") == (database or "")


@pytest.mark.parametrize("path", ["", "/", "/0", "/2"])
@pytest.mark.parametrize("query", ["", "?db=0", "?db=1", "?socket_timeout=5", "?db=3&socket_timeout=5"])
def test_the_broker_is_in_the_database_that_redis_py_reads(path: str, query: str) -> None:
    url = f"redis://example.org{path}{query}"
    with redis.Redis.from_url(url) as client:
        database = client.connection_pool.connection_kwargs.get("db", 0)
    assert Connection(broker_url(url)).virtual_host.strip("/") == str(database)


def test_passwords_survive() -> None:
    connection = Connection(broker_url("redis://ada:p%2Fw%40d@example.org/1"))
    assert (connection.userid, connection.password) == ("ada", "p/w@d")


@pytest.mark.parametrize(
    ("url", "required"),
    [
        ("rediss://example.org/0", ssl.CERT_REQUIRED),
        ("rediss://example.org/0?ssl_cert_reqs=optional", ssl.CERT_OPTIONAL),
        ("rediss://example.org/0?ssl_cert_reqs=none", ssl.CERT_NONE),
    ],
)
def test_rediss_is_encrypted_and_checks_certificates_unless_told_otherwise(url: str, required: int) -> None:
    connection = Connection(broker_url(url))
    assert connection.ssl == {"ssl_cert_reqs": required}


def test_rediss_with_another_option_is_still_encrypted() -> None:
    connection = Connection(broker_url("rediss://example.org/0?ssl_ca_certs=/etc/ca.pem"))
    assert connection.ssl["ssl_ca_certs"] == "/etc/ca.pem"
    assert connection.ssl.get("ssl_cert_reqs", ssl.CERT_REQUIRED) == ssl.CERT_REQUIRED


@pytest.mark.parametrize("query", ["heartbeat=5", "db=1", "socket_timeout=5&heartbeat=5", "ssl=false"])
def test_no_option_takes_the_encryption_away(query: str) -> None:
    connection = Connection(broker_url(f"rediss://h/0?{query}"))
    assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert not connection.heartbeat


def test_redis_is_not_encrypted() -> None:
    assert not Connection(broker_url("redis://example.org/0")).ssl


def test_a_real_channel_speaks_to_the_database_of_the_url(other_database: str) -> None:
    with Connection(broker_url(other_database)) as connection:
        options: dict[str, Any] = connection.default_channel.client.connection_pool.connection_kwargs
        assert str(options["db"]) == _database_of(other_database)
        assert connection.default_channel.client.ping()


def test_channels_gets_the_url_as_it_is() -> None:
    host = channels_host("unix:///run/valkey.sock?db=3")
    assert host["address"] == "unix:///run/valkey.sock?db=3"
    assert host["max_connections"] >= 1_000


def test_celery_uses_our_transport_and_knows_each_domain() -> None:
    with Connection(settings.CELERY_BROKER_URL) as connection:
        assert isinstance(connection.transport, Transport)
    assert [queue.name for queue in settings.CELERY_TASK_QUEUES] == list(DOMAINS)


def _database_of(url: str) -> str:
    parts = urlsplit(url)
    return parse_qs(parts.query)["db"][0] if parts.scheme == "unix" else parts.path.strip("/")


def test_a_socket_below_a_directory_with_a_space_is_found(other_database: str, tmp_path: Path) -> None:
    parts = urlsplit(other_database)
    if parts.scheme != "unix":
        pytest.skip("Valkey is reached over TCP here")
    directory = tmp_path / "my project"
    directory.mkdir()
    (directory / "valkey.sock").symlink_to(unquote(parts.path))
    url = f"unix://{quote(str(directory))}/valkey.sock?{parts.query}"
    with redis.Redis.from_url(url) as client, Connection(broker_url(url)) as connection:
        assert client.ping()
        assert connection.default_channel.client.ping()
