"""The doctor sees what cannot work, and kombu has the shape that the transport was written for."""

from __future__ import annotations

import inspect
import re
from io import StringIO
from pathlib import Path
from typing import Any

import kombu.transport
import pytest
import redis
from celery import Celery
from channels.layers import InMemoryChannelLayer
from django.conf import settings as django_settings
from django.core.management import call_command
from django.db import OperationalError, connection
from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as stock
from pytest_django import Settings

from core.broker import doctor, transport
from core.broker.doctor import NAMES, SHAPES, VERSIONS, Finding, Verdict
from core.broker.urls import broker_url
from core.management.commands import doctor as command
from core.queues.names import DOMAINS
from nooble.celery import app
from tests.core.broker.server import Server


def of(findings: Any, check: str) -> Finding:
    [found] = [finding for finding in findings if finding.check == check]
    assert isinstance(found, Finding)
    assert bool(found.remedy) == (found.verdict is not Verdict.OK)
    return found


# kombu: the test that must fail loudly when an upgrade changes what the transport leans on.


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_kombus_method_is_the_one_the_transport_was_written_for(name: str) -> None:
    assert str(inspect.signature(doctor.method(name))) == SHAPES[name], "read what changed before the table"


@pytest.mark.parametrize("name", NAMES)
def test_kombus_method_still_uses_what_the_transport_shares(name: str) -> None:
    used = set(doctor.method(name).__code__.co_names)
    assert set(NAMES[name]) <= used, "read what changed before changing the table"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (transport.QoS, stock.QoS),
        (transport.Channel, stock.Channel),
        (transport.Poller, stock.MultiChannelPoller),
        (transport.Transport, stock.Transport),
    ],
)
def test_every_overridden_method_is_in_the_table(ours: type, theirs: type) -> None:
    overridden = {
        name for name, value in vars(ours).items() if inspect.isfunction(value) and hasattr(theirs, name)
    }
    assert overridden
    assert {name for name in overridden if f"redis.{theirs.__name__}.{name}" not in SHAPES} == set()


def test_kombu_of_today_passes() -> None:
    assert doctor.shapes_of_kombu().verdict is Verdict.OK


def test_another_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "redis.Channel._put", "(self, queue, message, priority)")
    monkeypatch.setitem(SHAPES, "redis.Channel._gone", "(self)")
    monkeypatch.setitem(NAMES, "virtual.QoS.__init__", ("_no_such_name",))
    monkeypatch.setitem(NAMES, "virtual.QoS._gone", ("_delivered",))
    found = doctor.shapes_of_kombu()
    assert found.verdict is Verdict.FAIL
    assert (
        "Channel._put(self, queue, message, priority) is now (self, queue, message, **kwargs)" in found.text
    )
    assert "QoS.__init__ does not use _no_such_name any more" in found.text


def test_the_pinned_versions_are_those_of_the_requirements() -> None:
    text = (Path(django_settings.BASE_DIR) / "requirements.txt").read_text()
    for name, (first, too_new) in VERSIONS.items():
        pinned = re.search(rf"^{name}(?:\[\w+\])?>=([\d.]+),<([\d.]+)$", text, re.MULTILINE)
        assert pinned is not None
        assert [tuple(map(int, part.split("."))) for part in pinned.groups()] == [first, too_new]


@pytest.mark.parametrize(
    ("installed", "verdict"),
    [
        ("5.6.9", Verdict.FAIL),
        ("5.7.0", Verdict.OK),
        ("5.7.12", Verdict.OK),
        ("5.8.0", Verdict.FAIL),
        ("6.0", Verdict.FAIL),
    ],
)
def test_versions(monkeypatch: pytest.MonkeyPatch, installed: str, verdict: Verdict) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: installed if name == "kombu" else "5.6.3")
    assert of([doctor.versions()], "versions").verdict is verdict


# Celery.


def test_the_platforms_transport_is_ours() -> None:
    assert doctor.transport_is_ours(app).verdict is Verdict.OK


@pytest.mark.parametrize("url", ["redis://localhost/0", "redis+socket:///run/x.sock", "memory://"])
def test_another_transport_is_refused(url: str) -> None:
    found = of([doctor.transport_is_ours(Celery("other", broker=url, set_as_current=False))], "transport")
    assert found.verdict is Verdict.FAIL
    assert "the Celery app resolves to kombu.transport." in found.text


def test_a_scheme_that_falls_back_to_stock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kombu.transport, "_transport_cache", {})
    monkeypatch.setitem(TRANSPORT_ALIASES, "noobles", "kombu.transport.redis:Transport")
    found = doctor.transport_is_ours(app)
    assert found.verdict is Verdict.FAIL
    assert "rediss://localhost:6380/0 resolves to kombu.transport.redis.Transport" in found.text


def test_a_worker_with_another_transport_does_not_start() -> None:
    other = Celery("other", broker="redis://localhost/0", set_as_current=False)
    worker = type("Worker", (), {"app": other})()
    with pytest.raises(SystemExit, match="the Celery app resolves to"):
        doctor.signals.celeryd_init.send(sender="test", instance=worker, conf=other.conf, options={})
    worker.app = app
    doctor.signals.celeryd_init.send(sender="test", instance=worker, conf=app.conf, options={})


def test_celery_settings() -> None:
    assert doctor.celery_settings(app).verdict is Verdict.OK
    other = Celery("other", set_as_current=False)
    found = of([doctor.celery_settings(other)], "celery settings")
    assert found.verdict is Verdict.FAIL
    for text in ("task_acks_late", "worker_prefetch_multiplier", "task_queues"):
        assert text in found.text
    other.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        task_queues=[Queue(domain) for domain in DOMAINS[1:]],
    )
    assert "task_queues" in doctor.celery_settings(other).text


# The server.


@pytest.fixture
def at(server: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[Celery, redis.Redis]:
    client = redis.Redis.from_url(server.url)
    monkeypatch.setattr(doctor.valkey, "client", lambda: client)
    return Celery("at", broker=broker_url(server.url), set_as_current=False), client


def test_a_good_server(at: tuple[Celery, redis.Redis]) -> None:
    found = list(doctor.server(at[0], prod=True))
    assert {finding.verdict for finding in found} == {Verdict.OK}, found
    assert len(found) == 6
    assert at[1].dbsize() == 0


@pytest.mark.parametrize(("prod", "verdict"), [(True, Verdict.FAIL), (False, Verdict.WARN)])
def test_persistence_and_eviction(at: tuple[Celery, redis.Redis], prod: bool, verdict: Verdict) -> None:
    celery, client = at
    client.config_set("appendonly", "no")
    client.config_set("maxmemory-policy", "volatile-lru")
    found = list(doctor.server(celery, prod=prod))
    assert of(found, "persistence").verdict is verdict
    assert of(found, "eviction").verdict is verdict
    assert "volatile-lru" in of(found, "eviction").text


def test_a_server_that_is_away(at: tuple[Celery, redis.Redis], server: Server) -> None:
    server.kill()
    [found] = doctor.server(at[0], prod=True)
    assert of([found], "broker").verdict is Verdict.FAIL


def test_another_database_is_seen(at: tuple[Celery, redis.Redis], server: Server) -> None:
    elsewhere = Celery("at", broker=broker_url(server.url.replace("db=0", "db=1")), set_as_current=False)
    found = of(doctor.server(elsewhere, prod=False), "one database")
    assert (found.verdict, "another database" in found.text) == (Verdict.FAIL, True)


def test_a_broker_that_kombu_cannot_reach(at: tuple[Celery, redis.Redis]) -> None:
    nowhere = Celery("at", broker="nooble://127.0.0.1:1/0", set_as_current=False)
    found = of(doctor.server(nowhere, prod=False), "one database")
    assert (found.verdict, "kombu cannot reach it" in found.text) == (Verdict.FAIL, True)


def test_a_server_that_may_not_do_what_scripts_do(at: tuple[Celery, redis.Redis]) -> None:
    celery, client = at
    client.acl_setuser("default", commands=["-bzpopmin"])
    found = of(doctor.server(celery, prod=False), "server version")
    assert (found.verdict, "refuses" in found.text) == (Verdict.FAIL, True)


@pytest.mark.parametrize(
    ("info", "check"),
    [
        ({"redis_version": "6.2.14"}, "server version"),
        ({"cluster_enabled": 1}, "topology"),
        ({"role": "slave"}, "topology"),
        ({"aof_last_write_status": "err"}, "persistence"),
    ],
)
def test_what_a_server_says_of_itself(
    at: tuple[Celery, redis.Redis], monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], check: str
) -> None:
    celery, client = at
    truth: Any = client.info()
    monkeypatch.setattr(client, "info", lambda: truth | info)
    found = list(doctor.server(celery, prod=False))
    assert [finding.check for finding in found if finding.verdict is Verdict.FAIL] == [check]


# The command.


def run() -> tuple[int, list[str]]:
    out = StringIO()
    try:
        call_command("doctor", stdout=out)
    except SystemExit as error:
        return int(str(error.code)), out.getvalue().splitlines()
    return 0, out.getvalue().splitlines()


@pytest.mark.django_db
def test_the_tests_own_services_are_well() -> None:
    code, lines = run()
    assert (code, {line[:4] for line in lines}) == (0, {"OK  "}), lines
    assert len(lines) == 14


@pytest.mark.django_db
def test_one_failure_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "get_channel_layer", InMemoryChannelLayer)
    code, lines = run()
    assert code == 1
    [failed] = [line for line in lines if line.startswith("FAIL")]
    assert failed.startswith("FAIL  channel layer: channels.layers.InMemoryChannelLayer")


@pytest.mark.django_db
def test_missing_migrations_are_named() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'core'")
    found = of([command.database()], "database")
    assert found.verdict is Verdict.FAIL
    assert "core.0001" in found.text


def test_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OperationalError("connection\nrefused")

    monkeypatch.setattr(command, "MigrationExecutor", refuse)
    found = of([command.database()], "database")
    assert (found.verdict, found.text) == (Verdict.FAIL, "OperationalError: connection refused")


@pytest.mark.parametrize(
    ("key", "prod", "verdict"),
    [
        ("only-for-checks-only-for-checks-only", True, Verdict.FAIL),
        ("django-insecure-0123456789abcdefghijklmnop", True, Verdict.FAIL),
        ("a" * 64, True, Verdict.FAIL),
        ("a" * 64, False, Verdict.OK),
        ("9f8b4c1e2d7a6035" * 4, True, Verdict.OK),
    ],
)
def test_the_secret_key(settings: Settings, key: str, prod: bool, verdict: Verdict) -> None:
    settings.SECRET_KEY = key
    assert of([command.secret_key(prod=prod)], "secret key").verdict is verdict
