"""What waits and what runs, read from the transport's own keys; the cost does not grow with tenants."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from core import valkey
from core.broker.scripts import CAPPED_DOMAINS, DEFAULT_CAP, ROOT
from core.queues.names import DOMAINS, QueueFilter, QueueName

RUNNING_SLICE = 1_000  # of the tenants that only run, at least so many are looked at


@dataclass(frozen=True, slots=True)
class DomainFigures:
    """Messages of one domain; `tenants` is how many of them have work waiting."""

    domain: str
    waiting: int
    running: int
    delayed: int
    tenants: int


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """Messages of one tenant in one domain. `oldest_wait` in seconds; a `cap` of None is none."""

    domain: str
    tenant_id: str
    waiting: int
    running: int
    cap: int | None
    weight: float
    oldest_wait: float


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """Messages of one queue. `oldest_wait` in seconds."""

    queue: str
    waiting: int
    oldest_wait: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What no worker could read."""

    queue: str
    reason: str
    message: str


def ask(pipeline: Any) -> None:
    """Queue the reads of all totals, for a caller who reads more in the same round trip."""
    for domain in DOMAINS:
        P = f"{ROOT}:{domain}"
        pipeline.get(f"{P}:total")
        pipeline.get(f"{P}:leased")
        pipeline.zcard(f"{P}:delayed")
        pipeline.zcard(f"{P}:waiting")
    pipeline.llen(f"{ROOT}:dead")


def answer(replies: list[Any]) -> tuple[list[DomainFigures], int]:
    """One line a domain, and the number of dead letters, of the replies to what `ask` asked."""
    *found, dead = (int(number or 0) for number in replies)
    lines = [DomainFigures(domain, *found[4 * index : 4 * index + 4]) for index, domain in enumerate(DOMAINS)]
    return lines, dead


def totals() -> tuple[list[DomainFigures], int]:
    """As `answer`, in one read. Raises redis.RedisError."""
    pipeline = valkey.client().pipeline(transaction=False)
    ask(pipeline)
    return answer(pipeline.execute())


def tenants(domain: str, limit: int = 50, among: Iterable[str] | None = None) -> list[TenantFigures]:
    """The busiest tenants: those with the most waiting messages, then with the most running ones.

    Or those of `among`, busy or not. Raises redis.RedisError.
    """
    if among is not None:
        return _figures(domain, [tenant.encode() for tenant in among][:limit])
    P, client = f"{ROOT}:{domain}", valkey.client()
    pipeline = client.pipeline(transaction=False)
    pipeline.zrevrange(f"{P}:waiting", 0, limit - 1, withscores=True)
    pipeline.hscan(f"{P}:running", 0, count=RUNNING_SLICE)
    most, (_, running) = pipeline.execute()
    waiting = {tenant: int(count) for tenant, count in most}
    idle = sorted(running.keys() - waiting.keys(), key=lambda tenant: (-int(running[tenant]), tenant))
    return _figures(domain, [*waiting, *idle[: limit - len(waiting)]])


def _figures(domain: str, names: list[bytes]) -> list[TenantFigures]:
    P, client = f"{ROOT}:{domain}", valkey.client()
    pipeline = client.pipeline(transaction=False)
    for tenant in names:
        pipeline.zscore(f"{P}:waiting", tenant)
        pipeline.hget(f"{P}:running", tenant)
        pipeline.hget(f"{ROOT}:limits", tenant)
        pipeline.zrange(f"{P}:q:{tenant.decode()}", 0, -1)
    replies = iter(pipeline.execute())
    rows = [(tenant.decode(), *(next(replies) for _ in range(4))) for tenant in names]

    pipeline = client.pipeline(transaction=False)
    for *_, queues in rows:
        for queue in queues:
            pipeline.lindex(f"{P}:m:{queue.decode()}", -1)
    heads = iter(pipeline.execute())
    now = time.time()
    lines = [
        TenantFigures(
            domain,
            tenant,
            int(waits or 0),
            int(runs or 0),
            _cap(domain, limits),
            float(limits.split()[0]) if limits else 1.0,
            # The web's clock may be behind the broker's.
            max((0.0, *(now - _put_at(next(heads), now) for _ in queues))),
        )
        for tenant, waits, runs, limits, queues in rows
    ]
    return sorted(lines, key=lambda line: (-line.waiting, -line.running, line.tenant_id))


def queues(asked: QueueFilter) -> list[QueueFigures]:
    """Those of a tenant's queues that were asked for and are not empty. Raises redis.RedisError."""
    P, client = f"{ROOT}:{asked.domain}", valkey.client()
    found: Any = client.zrange(f"{P}:q:{asked.tenant_id}", 0, -1)
    names = sorted(name for name in map(bytes.decode, found) if asked.includes(QueueName.parse(name)))
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.llen(f"{P}:m:{name}")
        pipeline.lindex(f"{P}:m:{name}", -1)
    replies = iter(pipeline.execute())
    now = time.time()
    # The web's clock may be behind the broker's.
    return [
        QueueFigures(name, int(next(replies)), max(0.0, now - _put_at(next(replies), now))) for name in names
    ]


def _cap(domain: str, limits: bytes | None) -> int | None:
    if domain not in CAPPED_DOMAINS:
        return None
    return int(limits.split()[1]) if limits else DEFAULT_CAP


def _put_at(entry: bytes | None, otherwise: float) -> float:
    """When the entry was put, in seconds since the epoch."""
    put = entry.partition(b"|")[0] if entry else b""
    return int(put) / 1000 if put.isdigit() else otherwise


def dead_letters(limit: int = 100) -> list[DeadLetter]:
    """The newest of them. Raises redis.RedisError."""
    entries: Any = valkey.client().lrange(f"{ROOT}:dead", 0, limit - 1)
    return [_dead(entry.decode("utf-8", "replace")) for entry in entries]


def _dead(entry: str) -> DeadLetter:
    queue, reason, message = [*entry.split("|", 2), "", ""][:3]
    return DeadLetter(queue, reason, message)
