"""The second wall: policies of the database, which hold where a query has forgotten its tenant.

A migration that makes a tenant's table ends with `RowSecurity()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db import connection
from django.db.migrations.operations.base import Operation

from core.postgres.cursors import SETTING, tenant_column

_SETTING = f"current_setting('{SETTING}', true)"


def policies(table: str, column: str, *, shared: bool) -> Iterator[str]:
    """The statements that protect a table; they may be repeated.

    Without a setting a row is nobody's: a raw connection sees and writes none. FORCE: the owner of the
    tables is no exception. Rows of no tenant are the platform's, or `shared`: everybody reads them.
    """
    yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
    yield f"DROP POLICY IF EXISTS tenant ON {table}"
    # The most frequent comes first: what is asked for by its key costs one look at the setting.
    yield (
        f"CREATE POLICY tenant ON {table} USING ({column} = {_SETTING} OR {_SETTING} = '*'"
        f" OR {column} = ANY (string_to_array({_SETTING}, ',')))"
    )
    yield f"DROP POLICY IF EXISTS shared ON {table}"
    if shared:
        yield f"CREATE POLICY shared ON {table} FOR SELECT USING ({column} IS NULL AND {_SETTING} <> '')"


class RowSecurity(Operation):
    """Protects every table of the app that has a tenant, as the app is at this place of the chain.

    `shared` names the models, in lower case, whose rows of no tenant all tenants read.
    """

    reduces_to_sql = True

    def __init__(self, shared: tuple[str, ...] = ()) -> None:
        self.shared = shared

    def state_forwards(self, app_label: str, state: Any) -> None:
        """No model changes."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        for model, table, column in _protected(app_label, schema_editor, to_state):
            for statement in policies(table, column, shared=model._meta.model_name in self.shared):
                schema_editor.execute(statement)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        for _model, table, _column in _protected(app_label, schema_editor, from_state):
            schema_editor.execute(f"DROP POLICY IF EXISTS shared ON {table}")
            schema_editor.execute(f"DROP POLICY IF EXISTS tenant ON {table}")
            schema_editor.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
            schema_editor.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")

    def describe(self) -> str:
        return "Protect the tables of tenants by row security"


def _protected(app_label: str, schema_editor: Any, state: Any) -> Iterator[tuple[Any, str, str]]:
    for model in state.apps.get_app_config(app_label).get_models():
        column = tenant_column(model)
        if column is not None:
            quote = schema_editor.quote_name
            yield model, quote(model._meta.db_table), quote(column)


def bypassed_by() -> str | None:
    """The role that we connect as, when no policy holds for it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolbypassrls)"
        )
        row = cursor.fetchone()
    return row[0] if row else None


def unprotected(tables: set[str]) -> set[str]:
    """Those of the tables that stand open: no forced row security, or no policy."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname FROM pg_class c JOIN unnest(%s::text[]) name ON c.oid = to_regclass(name)"
            " WHERE c.relrowsecurity AND c.relforcerowsecurity"
            " AND EXISTS (SELECT 1 FROM pg_policy WHERE polrelid = c.oid AND polname = 'tenant')",
            [sorted(tables)],
        )
        return tables - {name for (name,) in cursor.fetchall()}
