"""The record of changes: who changed what, from where.

A handler that changes something of a tenant's, or of the platform's, calls `record` in the
transaction of the change: the one is never there without the other. Who asks, and through which
door, is known at the doors (`asked_by`) and travels in a context variable, as the tenant does.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

from core.changes import changes_between
from core.models.audit import AuditEntry, AuditSource

MASK = "***"

# The last word of a secret's name. `max_output_tokens` counts, `service_token` opens.
_secret = re.compile(
    r"(?:^|[_-])(?:secrets?|passwords?|passphrase|credentials?|authorization|cookie|digest|signature|"
    r"ciphertext|token|(?:api)?keys?)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the present work was asked for. `actor` is asked for late: a session costs a query."""

    source: AuditSource
    actor: Callable[[], str] = lambda: ""
    request_id: str = ""
    ip: str | None = None


# What passes no door was started by hand, or by the platform itself.
_BY_HAND = Origin(AuditSource.COMMAND)
_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)


@contextmanager
def asked_by(origin: Origin) -> Iterator[None]:
    """Everything inside was asked for there."""
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


def current_origin() -> Origin:
    return _origin.get() or _BY_HAND


def with_actor(actor: str) -> Origin:
    """The present origin, once it is known who asks."""
    return dataclasses.replace(current_origin(), actor=lambda: actor)


def record(
    verb: str,
    object_type: str,
    object_id: str | int | uuid.UUID,
    *,
    tenant_id: str | None,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    actor: str = "",
) -> AuditEntry | None:
    """Write down one change, in the transaction of the change.

    `before` and `after` are the states: only the fields that differ are kept, and none when nothing
    differs. Of something new `before` is empty. Secrets become `***`, by their names and their
    types. `actor` is who asked when the door does not know, as for what comes from a queue.
    Raises RuntimeError outside a transaction: the change and its entry would be two things.
    """
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError(f"{verb}: an audit entry belongs into the transaction of its change")
    changes = changes_between(_plain(before), _plain(after))
    if not changes:
        return None
    origin = current_origin()
    entry: AuditEntry = AuditEntry.unscoped.create(
        tenant_id=tenant_id,
        verb=verb,
        object_type=object_type,
        object_id=str(object_id),
        actor=(actor or origin.actor() or "system")[:160],
        before={change.field: _shown(change.field, change.before) for change in changes if before},
        after={change.field: _shown(change.field, change.after) for change in changes if after},
        source=origin.source,
        request_id=origin.request_id,
        ip=_address(origin.ip),
    )
    return entry


def _address(text: str | None) -> str | None:
    """What PostgreSQL takes as an address: none of a Unix socket, and no zone."""
    try:
        return str(ipaddress.ip_address((text or "").partition("%")[0]))
    except ValueError:
        return None


class _Hidden(str):
    """A secret on its way to the mask; it still differs from another."""


def _plain(value: Any) -> Any:
    """The value as JSON has it; what is secret by its type is marked, and does not get further."""
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, SecretStr | SecretBytes):
        return _Hidden(value.get_secret_value())
    if isinstance(value, bytes | bytearray | memoryview):
        return _Hidden(bytes(value).hex())
    return to_jsonable_python(value)


def _shown(field: str, value: Any) -> Any:
    return _masked(value, any(is_secret(name) for name in field.split(".")))


def _masked(value: Any, secret: bool) -> Any:
    """Texts that are secret become the mask; that there was none, or a number, may be seen."""
    if isinstance(value, dict):
        return {name: _masked(item, secret or is_secret(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, secret) for item in value]
    if isinstance(value, str) and value and (secret or isinstance(value, _Hidden)):
        return MASK
    return value


def is_secret(name: str) -> bool:
    """Whether a field of this name holds something that opens a door."""
    return _secret.search(name) is not None
