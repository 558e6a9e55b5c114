"""The scripts and a few verbs over them, on a root of the test's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import redis
from django.conf import settings

from core.broker.scripts import Scripts
from core.queues.names import QueueName

RANKS = {"high": 0, "normal": 1, "low": 2}
AGEING = 30_000
_roots = itertools.count(1)


class Broker:
    """The transport's scripts without kombu: what a property test drives."""

    def __init__(self, lease_ms: int = 60_000) -> None:
        self.client = redis.Redis.from_url(settings.REDIS_URL)
        self.scripts = Scripts(self.client)
        self.root = f"test:{next(_roots)}"
        self.lease_ms = lease_ms
        for key in self.client.scan_iter(f"{self.root}:*"):
            self.client.delete(key)

    def put(
        self,
        tag: str,
        tenant: str,
        priority: str = "normal",
        domain: str = "agent",
        due: int = 0,
        correlation: str | None = None,
    ) -> None:
        queue = str(QueueName(domain, tenant, "execute", priority))
        correlation = f"c-{tag}" if correlation is None else correlation
        terms = [RANKS[priority], tag, correlation, f"message {tag}", due]
        self.scripts.put(args=[self.root, domain, tenant, queue, *terms])

    def present(self, correlations: Iterable[str]) -> set[str]:
        """Those whose message the broker says it has."""
        asked = list(correlations)
        absent = {name.decode() for name in self.scripts.absent(args=[self.root, *asked])}
        return set(asked) - absent

    def drop(self, correlation: str) -> bool:
        return self.scripts.drop(args=[self.root, correlation]) == 1

    def purge(self, tenant: str, priority: str = "", domain: str = "agent") -> int:
        """One queue of the tenant; without a priority all that waits of the tenant."""
        queue = str(QueueName(domain, tenant, "execute", priority)) if priority else ""
        return int(self.scripts.purge(args=[self.root, domain, tenant, queue]))

    def now_ms(self) -> int:
        seconds, microseconds = self.client.time()
        return int(seconds * 1000 + microseconds // 1000)

    def let_delayed_join(self, domain: str = "agent") -> int:
        """Whatever is delayed is due now."""
        delayed = self.client.zrange(f"{self.root}:{domain}:delayed", 0, -1)
        if delayed:
            self.client.zadd(f"{self.root}:{domain}:delayed", dict.fromkeys(delayed, 1))
        return int(self.scripts.due(args=[self.root, 100, domain]))

    def pop(self, domain: str = "agent") -> tuple[str, float] | None:
        popped = self.client.zpopmin(f"{self.root}:{domain}:ring")
        return (popped[0][0].decode(), popped[0][1]) if popped else None

    def lease(self, tenant: str, start: float, worker: str = "w", domain: str = "agent") -> str | None:
        leased = self.scripts.lease(
            args=[self.root, domain, tenant, f"{start:.17g}", worker, self.lease_ms, AGEING]
        )
        return leased[1].decode() if leased else None

    def next(self, worker: str = "w", domain: str = "agent") -> tuple[str, str] | None:
        """One dispatch: (tenant, tag), or None when nobody may be served."""
        while popped := self.pop(domain):
            tag = self.lease(*popped, worker=worker, domain=domain)
            if tag is not None:
                return popped[0], tag
        return None

    def settle(self, tag: str, to: str = "", worker: str = "w") -> bool:
        return self.scripts.settle(args=[self.root, worker, tag, to]) == 1

    def repair(self, domain: str = "agent") -> None:
        cursor = b"0"
        while (cursor := self.scripts.tidy(args=[self.root, domain, cursor, 2])) != b"0":
            pass

    def expire(self, worker: str) -> None:
        """The worker has not renewed in time."""
        self.client.zadd(f"{self.root}:workers", {worker: 1}, xx=True)

    def reap(self) -> int:
        count = 0
        while taken := self.scripts.reap(args=[self.root, 2]):
            count += taken
        return count

    def limit(self, tenant: str, weight: float, cap: int) -> None:
        self.client.hset(f"{self.root}:limits", tenant, f"{weight} {cap}")

    def count(self, kind: str, tenant: str, domain: str = "agent") -> int:
        key = f"{self.root}:{domain}:{kind}"
        found = self.client.hget(key, tenant) if kind == "running" else self.client.zscore(key, tenant)
        return int(found or 0)
