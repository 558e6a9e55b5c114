"""Tell what cannot work here, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery import current_app
from channels.layers import get_channel_layer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from core.broker.doctor import Finding, Verdict, findings
from core.postgres.cursors import tenant_tables
from core.postgres.row_security import bypassed_by, unprotected

# Keys that stand in files for everybody to read, and what Django's own template begins with.
PUBLIC_KEYS = ("only-for-checks", "django-insecure-", "changeme", "change-me", "secret")


class Command(BaseCommand):
    help = "Check the broker, the database and the settings: one line a check; exit code 1 when one fails."
    # It tells of a broken database itself.
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        app: Any = current_app
        prod = settings.NOOBLE_ENV == "prod"
        failed = False
        for finding in (*findings(app, prod=prod), *platform(prod=prod)):
            failed = failed or finding.verdict is Verdict.FAIL
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            self.stdout.write(f"{finding.verdict.value:<4}  {finding.check}: {finding.text}{remedy}")
        if failed:
            raise SystemExit(1)


def platform(*, prod: bool) -> Iterator[Finding]:
    """What is not the broker's."""
    yield database()
    yield row_security()
    yield channel_layer()
    yield secret_key(prod=prod)


def database() -> Finding:
    try:
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding("database", Verdict.FAIL, reason, "start PostgreSQL, or correct DATABASE_URL")
    if missing:
        first = missing[0][0]
        return Finding(
            "database",
            Verdict.FAIL,
            f"{len(missing)} migrations are missing, the first is {first.app_label}.{first.name}",
            "python manage.py migrate",
        )
    return Finding("database", Verdict.OK, "answers and is migrated")


def row_security() -> Finding:
    """The policies must hold for whoever we are, and stand on every table of tenants."""
    try:
        role, open_tables = bypassed_by(), unprotected(tenant_tables())
    except DatabaseError as error:
        return Finding("row security", Verdict.FAIL, type(error).__name__, "see the database")
    if role is not None:
        return Finding(
            "row security",
            Verdict.WARN,
            f"no policy holds for the role {role}: one wall instead of two stands between tenants",
            "give DATABASE_URL a role that is no superuser and has NOBYPASSRLS: docker/postgres-roles.sh",
        )
    if open_tables:
        tables = ", ".join(sorted(open_tables))
        return Finding("row security", Verdict.FAIL, f"open: {tables}", "python manage.py migrate")
    return Finding("row security", Verdict.OK, "stands on every table of tenants and holds for our role")


def channel_layer() -> Finding:
    layer = get_channel_layer()
    if not isinstance(layer, RedisPubSubChannelLayer):
        return Finding(
            "channel layer",
            Verdict.FAIL,
            f"{type(layer).__module__}.{type(layer).__qualname__}: sockets hear nothing of other processes",
            "as in nooble/settings/channels.py",
        )
    return Finding("channel layer", Verdict.OK, "Valkey's pub/sub")


def secret_key(*, prod: bool) -> Finding:
    key = settings.SECRET_KEY
    if prod and (key.lower().startswith(PUBLIC_KEYS) or len(set(key)) < 8):
        return Finding(
            "secret key",
            Verdict.FAIL,
            "SECRET_KEY can be guessed",
            'set SECRET_KEY to what `python -c "import secrets; print(secrets.token_hex(32))"` prints',
        )
    return Finding("secret key", Verdict.OK, "set" if prod else "looked at in prod only")
