"""The kombu transport: messages keep their four-part queue name, workers consume domains."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis

from core.queues.names import QueueName


def _list_of(queue: str) -> str:
    """The list that a queue's messages wait in: its domain's."""
    try:
        return QueueName.parse(queue).domain
    except ValueError:
        return queue


class Channel(redis.Channel):
    """Stock kombu, with every tenant's queue of a domain in that domain's one list."""

    _pooled_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Stock kombu builds a client for every message and every ack, a tenth of a worker's CPU."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]
        if self._pooled_client is None:
            self._pooled_client = super()._create_client()  # type: ignore[misc]
        return self._pooled_client

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        super()._put(_list_of(queue), message, **kwargs)

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> Any:
        found = _list_of(routing_key)
        return [found] if found != routing_key else super()._lookup(exchange, routing_key, default)


class Transport(redis.Transport):
    """Registered under our own schemes in `core.broker.urls`."""

    Channel = Channel
