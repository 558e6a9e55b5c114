"""Cursors that tell the database whose rows the present work may see, before they ask for any.

The policies of the tables (`core.postgres.row_security`) read the connection's setting SETTING. What a
connection was told last is kept beside it, and it is told again only when the scope has changed: as
a part of the statement that comes next, without a round trip of its own. What is rolled back takes
with it what was told in it, and so does every error: then the next statement tells it anew.

A pooler between us and the server must give each of our connections one of its own: the setting is
the connection's.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from django.apps import apps
from django.db.backends.postgresql import base
from psycopg import Connection
from psycopg.pq import TransactionStatus

from core.tenancy.scope import NO_TENANT, NoTenantScope, current_wall

SETTING = "nooble.tenant"
IDLE = TransactionStatus.IDLE

_TOLD = "_nooble_told"  # in a connection's __dict__

# What reads and writes rows, and may follow another statement in one message.
_ROWS = frozenset(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"))
# What asks for no rows, and has its place in a transaction that has failed.
_FRAME = frozenset(("SAVEPOINT", "RELEASE", "ROLLBACK"))


class Cursor(base.Cursor):
    """Every statement passes here: the ORM's, and those that are spelled out."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        wall = current_wall()
        told = self.connection.__dict__
        if wall == NO_TENANT:
            _refuse(query)
        elif told.get(_TOLD) == wall:
            return self._attempt(told, query, params, options)
        word = _first_word(query)
        if word in _FRAME or told.get(_TOLD) == wall:
            return self._attempt(told, query, params, options)
        if word in _ROWS:
            self._attempt(told, f"{_spelled(wall)}; {query}", params, options)
            self.nextset()
            told[_TOLD] = wall
            return self
        self.tell()
        return self._attempt(told, query, params, options)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> Any:
        _refuse(query)
        self.tell()
        try:
            return super().executemany(query, params_seq, **options)
        except BaseException:
            forget(self.connection)
            raise

    def copy(self, statement: Any, *args: Any, **options: Any) -> Any:
        self.tell()
        return super().copy(statement, *args, **options)

    def tell(self) -> None:
        """Tell the database the present scope, unless it knows."""
        wall = current_wall()
        told = self.connection.__dict__
        if told.get(_TOLD) != wall:
            self._attempt(told, _spelled(wall), None, {})
            told[_TOLD] = wall

    def _attempt(self, told: dict[str, Any], query: Any, params: Any, options: dict[str, Any]) -> Any:
        try:
            return super().execute(query, params, **options)
        except BaseException:
            told.pop(_TOLD, None)
            raise


class ServerSideCursor(base.ServerSideCursor):
    """What is read in pieces. Inside a transaction all of them are read in the scope that opened it.

    The setting is looked at row by row as the pieces are read; outside a transaction the server has put
    all rows aside before the first is read.
    """

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        _refuse(query)
        with self.connection.cursor() as cursor:
            assert isinstance(cursor, Cursor)
            cursor.tell()
        try:
            return super().execute(query, params, **options)
        except BaseException:
            forget(self.connection)
            raise


def forget(connection: Connection[Any] | None) -> None:
    """Nobody knows what the connection was told."""
    if connection is not None:
        connection.__dict__.pop(_TOLD, None)


def _spelled(wall: str) -> str:
    """The characters of a scope need no quoting; see `core.tenancy.scope`."""
    return f"SET {SETTING} = '{wall}'"


def _first_word(query: Any) -> str:
    return query.split(None, 1)[0].upper() if isinstance(query, str) and query.strip() else ""


def _refuse(query: Any) -> None:
    """The database would give no rows, in silence. Raises NoTenantScope where rows of tenants are meant."""
    if current_wall() != NO_TENANT or not isinstance(query, str) or not apps.models_ready:
        return
    if _first_word(query) in _ROWS and (table := _tables().search(query)):
        raise NoTenantScope(f"{table[0]}: enter a tenant_scope(…), or say across_tenants()")


@functools.cache
def _tables() -> re.Pattern[str]:
    """Finds a tenant's table in a statement."""
    return re.compile(rf"\b(?:{'|'.join(sorted(tenant_tables()))})\b")


def tenant_tables() -> set[str]:
    """Every table whose rows are tenants'."""
    return {model._meta.db_table for model in apps.get_models() if tenant_column(model)}


def tenant_column(model: Any) -> str | None:
    """The column that says whose row it is; of tenants themselves that is their id."""
    meta = model._meta
    if meta.label_lower == "core.tenant":
        return str(meta.pk.column)
    for field in meta.local_concrete_fields:
        if field.name == "tenant" and field.is_relation:
            return str(field.column)
    return None
