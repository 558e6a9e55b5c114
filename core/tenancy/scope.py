"""Whose rows the present work may see and write.

Three doors say it: the API view, the socket's connect, the worker. The manager `objects` reads it,
and the database is told (`core.postgres`): two walls, and each holds alone. Outside every scope there
are no rows of any tenant; work that crosses tenants says so (`across_tenants`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# What the policies of the database know beside a tenant's id and a list of them: see `current_wall`.
NO_TENANT = ""
ALL_TENANTS = "*"

_form = re.compile(r"[a-z0-9_-]{1,40}")
_wall: ContextVar[str] = ContextVar("wall", default=NO_TENANT)


class NoTenantScope(RuntimeError):
    """A tenant's rows were asked for outside a tenant scope: a bug, never an answer."""


@contextmanager
def tenant_scope(tenant_id: str) -> Iterator[None]:
    """Everything inside belongs to `tenant_id`.

    Raises NoTenantScope for what is no tenant's id, and for one that is not among those of a
    `tenants_scope` that we are in: from there it only gets narrower.
    """
    if not _form.fullmatch(tenant_id):
        raise NoTenantScope("a tenant scope needs a tenant")
    outer = _wall.get()
    if outer.startswith(",") and tenant_id not in outer.split(","):
        raise NoTenantScope(f"{tenant_id} is not among the tenants of this scope")
    with behind(tenant_id):
        yield


@contextmanager
def tenants_scope(tenant_ids: Iterable[str]) -> Iterator[None]:
    """The rows of these tenants and no others: for people who belong to some. `objects` raises here.

    No tenants, no rows. Raises NoTenantScope for what is no tenant's id.
    """
    tenants = sorted(tenant_ids)
    if not all(_form.fullmatch(tenant_id) for tenant_id in tenants):
        raise NoTenantScope("a tenants' scope needs tenants")
    with behind("," + ",".join(tenants)):
        yield


@contextmanager
def across_tenants() -> Iterator[None]:
    """The rows of all tenants: for the platform's own work. `objects` raises here.

    Every use is named in tests/architecture/test_walls.py.
    """
    with behind(ALL_TENANTS):
        yield


def current_wall() -> str:
    """What the database is told: a tenant's id, `,a,b` for some tenants, `*` for all, nothing for none."""
    return _wall.get()


@contextmanager
def behind(wall: str) -> Iterator[None]:
    """The scope that `current_wall` named: for what is done later than it was decided."""
    token = _wall.set(wall)
    try:
        yield
    finally:
        _wall.reset(token)


def current_tenant_id() -> str:
    """The tenant of the scope we are in. Raises NoTenantScope outside of one."""
    wall = _wall.get()
    if not wall or wall[0] in ",*":
        raise NoTenantScope("no tenant scope: enter tenant_scope(…) first")
    return wall
