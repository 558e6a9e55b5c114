"""The session log: a Valkey stream per session, the one source of what its clients hear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from core import valkey
from core.events.base import Event

LONGEST = 5_000  # events
SECONDS_TO_LIVE = 24 * 60 * 60

_append = (Path(__file__).parent / "append.lua").read_text()


def _log(name: str) -> str:
    return f"nooble:log:{{{name}}}"


def _marks(name: str) -> str:
    return f"nooble:marks:{{{name}}}"


async def append(name: str, event: Event, body: bytes, attempt: int | None = None) -> int | None:
    """Keep the event in the log `name` and return its seq.

    None when it was refused: a stale attempt, or a second end. Raises redis.RedisError.
    """
    seq: int = await _script()(
        keys=[_log(name), _marks(name)],
        args=[
            body,
            str(event.task_id) if event.task_id else "",
            attempt if attempt is not None else "",
            event.closes,
            str(event.event_id),
            LONGEST,
            SECONDS_TO_LIVE,
        ],
        client=valkey.async_client(),
    )
    return seq or None


async def read(name: str, after: int, limit: int = 500) -> list[tuple[int, bytes]]:
    """Up to `limit` events `(seq, body)` of the log `name` that came after seq `after`, in order."""
    entries: Any = await valkey.async_client().xrange(_log(name), min=f"({after}-0", count=limit)
    return [(int(entry_id.split(b"-")[0]), fields[b"e"]) for entry_id, fields in entries]


async def last_seq(name: str) -> int:
    """The log's tail; 0 for a session that nobody has heard of."""
    return int(await valkey.async_client().hget(_marks(name), "seq") or 0)


def last_seq_sync(name: str) -> int:
    """`last_seq`, for threads."""
    return int(valkey.client().hget(_marks(name), "seq") or 0)


def _script() -> redis.commands.core.AsyncScript:
    global _registered
    if _registered is None:
        # Registered with any client: the call names the one to use.
        _registered = valkey.async_client().register_script(_append)
    return _registered


_registered: redis.commands.core.AsyncScript | None = None
