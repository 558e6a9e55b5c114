"""Connections to Valkey, one pool per process (sync) and per event loop (async)."""

from __future__ import annotations

import asyncio
import functools
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from django.conf import settings

_TIMEOUTS = {"socket_timeout": 5, "socket_connect_timeout": 2}
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, redis.asyncio.Redis] = WeakKeyDictionary()


@functools.cache
def client() -> redis.Redis:
    """For threads."""
    pool = redis.BlockingConnectionPool.from_url(
        settings.REDIS_URL, max_connections=32, timeout=5, **_TIMEOUTS
    )
    return redis.Redis(connection_pool=pool)


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
