"""The tenant that the present work belongs to.

It is entered at three doors: the API view, the socket's connect, the worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_tenant_id: ContextVar[str | None] = ContextVar("tenant_id", default=None)


class NoTenantScope(RuntimeError):
    """A tenant's rows were asked for outside a tenant scope: a bug, never an answer."""


@contextmanager
def tenant_scope(tenant_id: str) -> Iterator[None]:
    """Everything inside belongs to `tenant_id`."""
    if not tenant_id:
        raise NoTenantScope("a tenant scope needs a tenant")
    token = _tenant_id.set(tenant_id)
    try:
        yield
    finally:
        _tenant_id.reset(token)


def current_tenant_id() -> str:
    """The tenant of the scope we are in. Raises NoTenantScope outside of one."""
    tenant_id = _tenant_id.get()
    if tenant_id is None:
        raise NoTenantScope("no tenant scope: enter tenant_scope(…) first")
    return tenant_id
