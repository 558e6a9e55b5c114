"""The leases of this worker process: given, renewed, ended.

They belong to the process, not to a kombu channel: they survive reconnects, and a connection that
closes gives nothing back. One thread renews them, and takes its turn at the work that any worker
may do for all: delayed messages that are due, dead workers' messages, tenants that sleep.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis
from django.db import DatabaseError, close_old_connections

from core.broker.limits import Limits, are_told, tell_all
from core.broker.scripts import ROOT, Scripts
from core.leases import LEASE_SECONDS, RENEW_SECONDS
from core.queues.names import DOMAINS
from core.valkey import Client

logger = logging.getLogger(__name__)

REPAIR_SECONDS = 5
DUE_SECONDS = 0.5
AGEING_MS = 30_000  # a message gains one priority word for each of these that it waits
SLICE = 1_000
DEAD_LETTERS = 10_000


class Keeper:
    """One a process. Its clients are shared by all threads; `publishing` never waits long."""

    def __init__(self, client: redis.Redis, publishing: redis.Redis | None = None) -> None:
        self.client = client
        self.publishing = publishing or client
        self.scripts = Scripts(client)
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._owner = os.getpid()
        self._held: dict[str, float] = {}  # delivery tag: when it was leased
        self._unsettled: dict[str, str] = {}
        self._unknown: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Renew from now on; called when the process begins to consume."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)
                self._thread.start()
                atexit.register(self.give_back)

    def lease(self, domain: str, tenant: str, start: float) -> tuple[str, str, bytes] | None:
        """The tenant's next message as (queue, delivery tag, message), now ours; or None."""
        terms = (self.worker, LEASE_SECONDS * 1000, AGEING_MS)
        return self.leased(self.scripts.lease(args=[ROOT, domain, tenant, f"{start:.17g}", *terms]))

    def take_arguments(self, domains: list[str]) -> list[Any]:
        """Of EVALSHA, for a connection that does not wait for the answer here; `leased` reads it."""
        return [self.scripts.take.sha, 0, ROOT, self.worker, LEASE_SECONDS * 1000, AGEING_MS, *domains]

    def leased(self, reply: Any) -> tuple[str, str, bytes] | None:
        """A script's answer as (queue, delivery tag, message), now ours; or None."""
        if not reply:
            return None
        queue, tag, message = reply[0].decode(), reply[1].decode(), reply[2]
        self._held[tag] = time.monotonic()
        return queue, tag, message

    def holds(self, tag: str) -> bool:
        return tag in self._held

    def running(self) -> set[str]:
        """The tags whose work has not ended here, whether or not the broker could be told."""
        return self._held.keys() - self._unsettled.keys()

    def settle(self, tag: str, to: str = "") -> None:
        """End the lease: the message is done (""), goes back ("head"), or is dead (a reason).

        With the broker away the end is remembered, and told with the next renewal.
        """
        self._unsettled[tag] = to
        leased_at = self._held.get(tag) if to == "" else None
        self._settle(tag, to, f"{time.monotonic() - leased_at:.3f}" if leased_at is not None else "")

    def _settle(self, tag: str, to: str, seconds: str = "") -> None:
        try:
            self.scripts.settle(args=[ROOT, self.worker, tag, to, seconds])
        except redis.RedisError as error:
            logger.warning("the end of lease %s is told later: %s", tag, error)
        else:
            self._unsettled.pop(tag, None)
            self._held.pop(tag, None)

    def wake(self, domain: str, *tenants: str | bytes) -> None:
        self.scripts.wake(args=[ROOT, domain, *tenants])

    def give_back(self) -> None:
        """The process ends: what it has not done goes back to the heads of its queues at once."""
        self._stop.set()
        if self._owner != os.getpid():
            return  # a fork's exit ends no lease of its parent
        for tag in list(self._held):
            self.settle(tag, self._unsettled.get(tag, "head"))
            if tag in self._unsettled:
                return  # the broker is away: the leases run out by themselves

    def _keep(self) -> None:
        renew_at = repair_at = 0.0
        while not self._stop.wait(DUE_SECONDS):
            now = time.monotonic()
            try:
                while self.scripts.due(args=[ROOT, SLICE, *DOMAINS]) == SLICE:
                    pass
                while self.scripts.reap(args=[ROOT, SLICE]):
                    pass
                if now >= renew_at:
                    self._renew()
                    renew_at = now + RENEW_SECONDS
                if now >= repair_at:
                    self._repair()
                    repair_at = now + REPAIR_SECONDS
            except redis.RedisError as error:
                logger.warning("leases are not renewed: %s", error)
            except Exception:
                logger.exception("leases are not renewed")

    def _renew(self) -> None:
        deadline = self._now_ms() + LEASE_SECONDS * 1000
        leases: Any = self.client.hkeys(f"{ROOT}:w:{self.worker}")
        if leases:
            self.client.zadd(f"{ROOT}:workers", {self.worker: deadline})
        for tag, to in list(self._unsettled.items()):
            self._settle(tag, to)
        # A lease whose reply was lost is ours, and nobody here knows. One round later: it may be on its way.
        unknown = {tag.decode() for tag in leases} - self._held.keys()
        for tag in unknown & self._unknown:
            self._settle(tag, "head")
        self._unknown = unknown

    def _now_ms(self) -> int:
        seconds, microseconds = self.client.time()
        return int(seconds * 1000 + microseconds // 1000)

    def _repair(self) -> None:
        """One worker at a time, for all."""
        if not self.client.set(f"{ROOT}:repair", self.worker, nx=True, px=int(REPAIR_SECONDS * 900)):
            return
        self.client.ltrim(f"{ROOT}:dead", 0, DEAD_LETTERS - 1)
        for domain in DOMAINS:
            # Caps may have been raised.
            for tenant in self.client.sscan_iter(f"{ROOT}:{domain}:capped", count=SLICE):
                self.wake(domain, tenant)
            if self._somebody_sleeps(domain):
                cursor = b"0"
                while (cursor := self.scripts.tidy(args=[ROOT, domain, cursor, SLICE])) != b"0":
                    pass
        # Last, and whatever it raises: the database's trouble is none of the leases'.
        if limits_source is not None and not are_told():
            try:
                tell_all(limits_source())
            except DatabaseError as error:
                logger.warning("limits are told later: %s", error)
            finally:
                close_old_connections()

    def _somebody_sleeps(self, domain: str) -> bool:
        """Whether some tenant with work is neither in the ring nor at its cap: three counts tell."""
        pipeline = self.client.pipeline(transaction=False)
        pipeline.zcard(f"{ROOT}:{domain}:waiting")
        pipeline.zcard(f"{ROOT}:{domain}:ring")
        pipeline.scard(f"{ROOT}:{domain}:capped")
        waiting, ring, capped = pipeline.execute()
        return bool(waiting > ring + capped)


# Who knows all tenants' weights and caps, for a broker that has lost them; set by the roof.
limits_source: Callable[[], Iterable[Limits]] | None = None

_keeper: Keeper | None = None
_owner = 0
_making = threading.Lock()


def keeper(url: str, max_connections: int) -> Keeper:
    """The process's keeper; a forked child gets its own."""
    global _keeper, _owner
    with _making:
        if _keeper is None or _owner != os.getpid():
            pool = redis.BlockingConnectionPool.from_url(
                url, max_connections=max_connections, timeout=5, socket_timeout=5, socket_connect_timeout=2
            )
            publishing = Client.of(url, max_connections)
            _keeper, _owner = Keeper(redis.Redis(connection_pool=pool), publishing), os.getpid()
        return _keeper
