"""Names of channel groups and of logs, from one function each."""

from __future__ import annotations

import hashlib
import uuid

# Of every pub/sub channel that the channel layer uses.
LAYER_PREFIX = "nooble"


def session_name(tenant_id: str, session_id: str) -> str:
    """The group and the log of a session.

    A hash, because Channels allows neither `:` nor 100 characters, and because joined names of
    client-chosen ids can collide across tenants.
    """
    joined = f"{tenant_id}\0{session_id}".encode()
    return "s." + hashlib.blake2b(joined, digest_size=16).hexdigest()


def log_name(tenant_id: str, session_id: str, task_id: uuid.UUID | None) -> str:
    """Where the events of a task are told: its session, or, where it has none, a log of its own."""
    if session_id:
        return session_name(tenant_id, session_id)
    joined = f"{tenant_id}\0{task_id}".encode()
    return "r." + hashlib.blake2b(joined, digest_size=16).hexdigest()


def tenant_name(tenant_id: str) -> str:
    """The group of all open sockets of a tenant."""
    return "t." + hashlib.blake2b(tenant_id.encode(), digest_size=16).hexdigest()


def updates_name(tenant_id: str) -> str:
    """The group of a tenant's dashboards. Not that of its sockets, which are public."""
    return "u." + hashlib.blake2b(tenant_id.encode(), digest_size=16).hexdigest()


def pubsub_channel(group: str) -> str:
    """Where channels-redis listens for a group. A test holds it against the layer's own name."""
    return f"{LAYER_PREFIX}__group__{group}"
