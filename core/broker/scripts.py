"""The transport's Lua scripts, each one atomic step; they stand beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import redis

# Tenants have a cap of running work in these domains only. A callback must never wait behind its own
# tenant's runs, and a run that waits for a tool of its tenant must not deadlock.
CAPPED_DOMAINS = ("agent", "workflow", "ingestion")
DEFAULT_CAP = 10  # leases a tenant and domain, over all workers, where its tier says nothing

ROOT = "nooble:q"  # of all keys of the transport

_FOLDER = Path(__file__).parent / "scripts"
_CAPS = "local CAPPED, DEFAULT_CAP = {{{}}}, {}\n".format(
    ", ".join(f"{domain} = true" for domain in CAPPED_DOMAINS), DEFAULT_CAP
)


class Script(Protocol):
    sha: str
    script: Any

    def __call__(self, *, args: list[Any], client: redis.Redis | None = None) -> Any: ...


class Scripts:
    """The scripts, bound to one client."""

    def __init__(self, client: redis.Redis) -> None:
        self.put = _script(client, "put")
        self.lease = _script(client, "lease")
        self.take = _script(client, "take")
        self.settle = _script(client, "settle")
        self.wake = _script(client, "wake")
        self.due = _script(client, "due")
        self.reap = _script(client, "reap")
        self.tidy = _script(client, "tidy")
        self.purge = _script(client, "purge")
        self.absent = _script(client, "absent")
        self.drop = _script(client, "drop")
        self.backlog = _script(client, "backlog")


def _script(client: redis.Redis, name: str) -> Script:
    common = (_FOLDER / "common.lua").read_text()
    return client.register_script(_CAPS + common + (_FOLDER / f"{name}.lua").read_text())
