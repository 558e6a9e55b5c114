"""The database engine: Django's own, which a server that is away holds up for seconds only.

And which tells the database whose rows the present work may see: see `core.postgres.cursors`.
"""

from __future__ import annotations

import functools
import select
from collections.abc import Callable
from typing import Any

import psycopg
from django.db.backends.postgresql import base
from django.db.backends.postgresql.schema import DatabaseSchemaEditor
from psycopg_pool import PoolTimeout

from core.breaker import Breaker
from core.postgres import cursors
from core.tenancy.scope import across_tenants, behind, current_wall

PATIENCE = 5.0  # seconds for a connection
PAUSE = 1.0  # seconds for which nobody asks for a connection that has just not come

_breaker = Breaker(PATIENCE, PAUSE, waited=PoolTimeout, away=psycopg.OperationalError)


class SchemaEditor(DatabaseSchemaEditor):
    """A migration is about all tenants' rows; its owner's policies hold for the owner too."""

    def __enter__(self) -> Any:
        self._wall = across_tenants()
        self._wall.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        try:
            super().__exit__(*raised)
        finally:
            self._wall.__exit__(None, None, None)


class DatabaseWrapper(base.DatabaseWrapper):
    SchemaEditorClass = SchemaEditor

    def get_connection_params(self) -> dict[str, Any]:
        return {**super().get_connection_params(), "cursor_factory": cursors.Cursor}

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """From the pool. One that the server has closed meanwhile is not given to anybody."""
        with _breaker.asking():
            connection = super().get_new_connection(conn_params)
            while self.pool and _has_ended(connection):
                connection.close()
                self.pool.putconn(connection)
                connection = super().get_new_connection(conn_params)
            return connection

    def create_cursor(self, name: str | None = None) -> Any:
        """A named one stays at the server, for what is read in pieces."""
        if name:
            return cursors.ServerSideCursor(
                self.connection, name=name, scrollable=False, withhold=self.connection.autocommit
            )
        return super().create_cursor()

    def on_commit(self, func: Callable[[], object], robust: bool = False) -> None:
        """What follows a commit belongs to whoever asked for it, wherever the transaction ends."""
        wall = current_wall()

        @functools.wraps(func)
        def follow() -> None:
            with behind(wall):
                func()

        super().on_commit(follow, robust)

    def _rollback(self) -> None:
        """With the transaction goes what it was told."""
        cursors.forget(self.connection)
        super()._rollback()

    def _savepoint_rollback(self, sid: str) -> None:
        super()._savepoint_rollback(sid)
        cursors.forget(self.connection)

    def _close(self) -> None:
        """The pool rolls back what is open."""
        if self.connection is not None and self.connection.info.transaction_status != cursors.IDLE:
            cursors.forget(self.connection)
        super()._close()


def _has_ended(connection: psycopg.Connection[Any]) -> bool:
    """Whether an idle connection has something to say: that is its end. It costs no round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
