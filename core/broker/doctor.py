"""Whether the queues can work here: what must hold of kombu, of Celery's settings and of the server.

The transport overrides private methods of kombu. What it was written for is in the tables below; the
doctor and a test compare them with what is installed.
"""

from __future__ import annotations

import inspect
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

import kombu.transport
import redis
from celery import Celery, signals
from kombu import Connection

from core import valkey
from core.broker import transport
from core.broker.urls import broker_url
from core.queues.names import DOMAINS

# The signatures that the transport overrides or calls, as they were when it was written.
SHAPES: dict[str, str] = {
    "redis.QoS.__init__": "(self, *args, **kwargs)",
    "redis.QoS.can_consume": "(self)",
    "redis.QoS.append": "(self, message, delivery_tag)",
    "redis.QoS.ack": "(self, delivery_tag)",
    "redis.QoS.reject": "(self, delivery_tag, requeue=False)",
    "redis.QoS.restore_unacked": "(self, client=None)",
    "virtual.QoS.append": "(self, message, delivery_tag)",
    "virtual.QoS.ack": "(self, delivery_tag)",
    "virtual.QoS.can_consume": "(self)",
    "virtual.QoS.can_consume_max_estimate": "(self)",
    "redis.Channel._put": "(self, queue, message, **kwargs)",
    "redis.Channel._lookup": "(self, exchange, routing_key, default=None)",
    "redis.Channel.basic_consume": "(self, queue, *args, **kwargs)",
    "redis.Channel._brpop_start": "(self, timeout=None)",
    "redis.Channel._brpop_read": "(self, **options)",
    "redis.Channel._size": "(self, queue)",
    "redis.Channel._purge": "(self, queue)",
    "redis.Channel._get": "(self, queue)",
    "redis.Channel._has_queue": "(self, queue, **kwargs)",
    "redis.MultiChannelPoller._update_brpop_polling": "(self)",
    "redis.MultiChannelPoller.on_readable": "(self, fileno)",
    "redis.Transport.__init__": "(self, *args, **kwargs)",
    "redis.Transport._deliver": "(self, message, queue)",
}
# What stock methods must go on to name: attributes that the transport shares with them, and the
# overridden methods that they call.
NAMES: dict[str, tuple[str, ...]] = {
    "virtual.QoS.__init__": ("_delivered",),
    "virtual.QoS.can_consume_max_estimate": ("_delivered", "_dirty"),
    "redis.Channel.__init__": ("_brpop_read", "handlers", "brpop_timeout"),
    "redis.Channel._brpop_start": ("_in_poll", "_brpop_sent_at", "active_queues", "send_command"),
    "redis.Channel._brpop_read": ("_in_poll", "_deliver", "parse_response", "connection_errors"),
    "redis.MultiChannelPoller.__init__": ("_channels", "_fd_to_chan"),
    "redis.MultiChannelPoller.on_poll_start": ("_update_brpop_polling", "_register_BRPOP", "can_consume"),
    "redis.MultiChannelPoller._register_BRPOP": ("_in_poll", "_brpop_start"),
    "redis.MultiChannelPoller.maybe_check_brpop_health": ("_in_poll", "_brpop_sent_at", "brpop_timeout"),
    "redis.MultiChannelPoller.on_readable": ("_fd_to_chan", "can_consume", "handlers"),
    "redis.MultiChannelPoller.handle_event": ("on_readable",),
    "redis.Transport.__init__": ("cycle",),
}
# From the first version to the one that is too new; as in requirements.txt.
VERSIONS = {"kombu": ((5, 7), (5, 8)), "celery": ((5, 6, 3), (5, 7))}
SCHEMES = ("redis://localhost:6379/0", "rediss://localhost:6380/0", "unix:///run/valkey.sock?db=0")
OLDEST_SERVER = (7, 0)  # of Redis; Valkey 7.2 and later call themselves 7.2.4

_ABILITIES = """
local key = KEYS[1]
redis.call('ZRANGE', key, '-inf', 0, 'BYSCORE', 'LIMIT', 0, 1)
redis.call('HRANDFIELD', key, 1)
redis.call('BZPOPMIN', key, 0)
return cmsgpack.pack({1})
"""


class Verdict(Enum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `remedy` is what to do where it is not OK."""

    check: str
    verdict: Verdict
    text: str
    remedy: str = ""


def transport_is_ours(app: Celery) -> Finding:
    """Of the app, and of each kind of URL: kombu falls back to its own transport in silence."""
    resolved = {
        "the Celery app": app.connection_for_write(),
        **{url: Connection(broker_url(url)) for url in SCHEMES},
    }
    for who, connection in resolved.items():
        found = type(connection.transport)
        if found is not transport.Transport:
            return Finding(
                "transport",
                Verdict.FAIL,
                f"{who} resolves to {found.__module__}.{found.__qualname__}",
                "let core.broker.urls make CELERY_BROKER_URL of REDIS_URL; set no broker_transport",
            )
    return Finding("transport", Verdict.OK, "ours for the Celery app, redis://, rediss:// and unix://")


def refuse_other_transports() -> None:
    """A worker with another transport would wait for messages that never come: it does not start."""

    @signals.celeryd_init.connect(weak=False)
    def check(instance: Any, **_: Any) -> None:
        finding = transport_is_ours(instance.app)
        if finding.verdict is Verdict.FAIL:
            # Celery logs what a receiver raises and goes on, but for an exit.
            raise SystemExit(f"transport: {finding.text}; {finding.remedy}")


def celery_settings(app: Celery) -> Finding:
    wrong = []
    if not app.conf.task_acks_late:
        wrong.append("task_acks_late is off: a running task holds no slot and dies with its worker")
    if app.conf.worker_prefetch_multiplier != 1:
        wrong.append("worker_prefetch_multiplier is not 1: messages wait inside a worker and hold slots")
    if sorted(queue.name for queue in app.conf.task_queues or ()) != sorted(DOMAINS):
        wrong.append("task_queues are not the domains: a worker without -Q misses some")
    if wrong:
        return Finding("celery settings", Verdict.FAIL, "; ".join(wrong), "as in nooble/settings/celery.py")
    return Finding("celery settings", Verdict.OK, "late acks, one message a slot, every domain")


def shapes_of_kombu() -> Finding:
    wrong = [*_changed_signatures(), *_missing_names()]
    if wrong:
        return Finding(
            "kombu",
            Verdict.FAIL,
            "; ".join(wrong),
            "install the versions of constraints.txt; or read what changed, adapt core/broker/transport.py, "
            "then its tables in core/broker/doctor.py",
        )
    return Finding("kombu", Verdict.OK, f"{len(SHAPES)} methods have the shape the transport was written for")


def method(name: str) -> Any:
    """The method of kombu that the tables call `name`; None when it is gone."""
    found: Any = kombu.transport
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _changed_signatures() -> Iterator[str]:
    for name, shape in SHAPES.items():
        found = method(name)
        if found is None:
            yield f"{name} is gone"
        elif (signature := str(inspect.signature(found))) != shape:
            yield f"{name}{shape} is now {signature}"


def _missing_names() -> Iterator[str]:
    for name, needed in NAMES.items():
        used = getattr(getattr(method(name), "__code__", None), "co_names", ())
        for missing in sorted(set(needed) - set(used)):
            yield f"{name} does not use {missing} any more"


def versions() -> Finding:
    found = {name: version(name) for name in VERSIONS}
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    for name, (first, too_new) in VERSIONS.items():
        if not first <= _numbers(found[name]) < too_new:
            return Finding(
                "versions",
                Verdict.FAIL,
                f"{told}; {name} must be from {_dotted(first)} and below {_dotted(too_new)}",
                "pip install -r requirements.txt -c constraints.txt",
            )
    return Finding("versions", Verdict.OK, told)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def server(app: Celery, *, prod: bool) -> Iterator[Finding]:
    """What the broker itself says. Nothing after the first line when it is away."""
    client = valkey.client()
    try:
        client.ping()
        info: Any = client.info()
    except redis.RedisError as error:
        yield Finding("broker", Verdict.FAIL, _told(error), "start Valkey, or correct REDIS_URL")
        return
    yield Finding("broker", Verdict.OK, f"{_product(info)} answers")
    yield _one_database(app, client)
    yield _abilities(client, info)
    yield _topology(info)
    yield _persistence(info, prod)
    yield _eviction(info, prod)


def _product(info: dict[str, Any]) -> str:
    name = str(info.get("server_name", "redis")).capitalize()
    return f"{name} {info.get('valkey_version') or info.get('redis_version')}"


def _one_database(app: Celery, client: redis.Redis) -> Finding:
    """Messages are put by our own connections, and waited for by kombu's."""
    key = f"nooble:doctor:{secrets.token_hex(8)}"
    check, remedy = "one database", "one REDIS_URL for all: host, port or socket, password, /number or ?db="
    try:  # a URL that kombu reads otherwise raises anything, even TypeError
        client.set(key, 1, ex=10)
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            channel: Any = connection.default_channel
            found = channel.client.exists(key)
        client.delete(key)
    except Exception as error:  # noqa: BLE001
        return Finding(check, Verdict.FAIL, f"kombu cannot reach it: {_told(error)}", remedy)
    if not found:
        return Finding(check, Verdict.FAIL, "Celery's connection sees another database than ours", remedy)
    return Finding(check, Verdict.OK, "Celery's connection and ours see the same")


def _abilities(client: redis.Redis, info: dict[str, Any]) -> Finding:
    check, remedy = "server version", "use Valkey 7.2 or newer, or Redis 7 or newer"
    number = str(info.get("redis_version", "0"))
    if _numbers(number) < OLDEST_SERVER:
        return Finding(check, Verdict.FAIL, f"{_product(info)} is too old", remedy)
    try:
        client.eval(_ABILITIES, 1, "nooble:doctor:none")
    except redis.RedisError as error:
        return Finding(
            check, Verdict.FAIL, f"{_product(info)} refuses what scripts use: {_told(error)}", remedy
        )
    return Finding(check, Verdict.OK, "knows BZPOPMIN, ZRANGE BYSCORE, HRANDFIELD and cmsgpack")


def _topology(info: dict[str, Any]) -> Finding:
    if info.get("cluster_enabled"):
        return Finding(
            "topology",
            Verdict.FAIL,
            "a cluster: one script touches keys of several slots",
            "use a single primary, with replicas for failover if need be",
        )
    if info.get("role", "master") != "master":
        return Finding(
            "topology", Verdict.FAIL, "a replica: it takes no writes", "give the primary's address"
        )
    return Finding("topology", Verdict.OK, "a primary, no cluster")


def _persistence(info: dict[str, Any], prod: bool) -> Finding:
    if not info.get("aof_enabled"):
        return Finding(
            "persistence",
            Verdict.FAIL if prod else Verdict.WARN,
            "appendonly is off: a restart forgets waiting messages and leases",
            "set appendonly yes",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding(
            "persistence", Verdict.FAIL, "the last write to disk failed", "look at the server's disk"
        )
    return Finding("persistence", Verdict.OK, "appendonly yes")


def _eviction(info: dict[str, Any], prod: bool) -> Finding:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return Finding(
            "eviction",
            Verdict.FAIL if prod else Verdict.WARN,
            f"maxmemory-policy is {policy}: a full server throws messages and leases away",
            "set maxmemory-policy noeviction",
        )
    return Finding("eviction", Verdict.OK, "noeviction")


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def findings(app: Celery, *, prod: bool) -> Iterator[Finding]:
    """Every check of the queues."""
    yield transport_is_ours(app)
    yield celery_settings(app)
    yield shapes_of_kombu()
    yield versions()
    yield from server(app, prod=prod)
