"""Connections to Valkey, one pool per process (sync) and per event loop (async)."""

from __future__ import annotations

import asyncio
import functools
from typing import Any
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
import redis.client
from django.conf import settings

from core.breaker import Breaker

PATIENCE = 1.0  # seconds that a thread waits for an answer: it holds up somebody's request
PAUSE = 1.0  # seconds for which nobody asks a server that has just not answered
_TIMEOUTS = {"socket_timeout": 5, "socket_connect_timeout": 2}
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, redis.asyncio.Redis] = WeakKeyDictionary()
_breaker = Breaker(PATIENCE, PAUSE, waited=redis.TimeoutError, away=redis.ConnectionError)


class Client(redis.Redis):
    """For threads that somebody waits for: no answer is waited for longer than `PATIENCE`."""

    @classmethod
    def of(cls, url: str, max_connections: int) -> Client:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=PATIENCE,
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
        )
        return cls(connection_pool=pool)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with _breaker.asking():
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: Any = True, shard_hint: Any = None) -> _Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _Pipeline(redis.client.Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:
        with _breaker.asking():
            return super().execute(raise_on_error)


@functools.cache
def client() -> Client:
    """For threads. Raises redis.RedisError within about a second where Valkey is away or frozen."""
    return Client.of(settings.REDIS_URL, max_connections=32)


def async_client() -> redis.asyncio.Redis:
    """For coroutines of the running loop. Callers wait for a connection: bursts open no thousand of them."""
    loop = asyncio.get_running_loop()
    found = _clients.get(loop)
    if found is None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.REDIS_URL, max_connections=64, timeout=None, **_TIMEOUTS
        )
        found = _clients[loop] = redis.asyncio.Redis(connection_pool=pool)
    return found
