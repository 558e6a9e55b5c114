"""The database engine: Django's own, which a server that is away holds up for seconds only."""

from __future__ import annotations

import select
from typing import Any

import psycopg
from django.db.backends.postgresql import base
from psycopg_pool import PoolTimeout

from core.breaker import Breaker

PATIENCE = 5.0  # seconds for a connection
PAUSE = 1.0  # seconds for which nobody asks for a connection that has just not come

_breaker = Breaker(PATIENCE, PAUSE, waited=PoolTimeout, away=psycopg.OperationalError)


class DatabaseWrapper(base.DatabaseWrapper):
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """From the pool. One that the server has closed meanwhile is not given to anybody."""
        with _breaker.asking():
            connection = super().get_new_connection(conn_params)
            while self.pool and _has_ended(connection):
                connection.close()
                self.pool.putconn(connection)
                connection = super().get_new_connection(conn_params)
            return connection


def _has_ended(connection: psycopg.Connection[Any]) -> bool:
    """Whether an idle connection has something to say: that is its end. It costs no round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
