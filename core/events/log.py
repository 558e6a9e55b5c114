"""The session log: a Valkey stream per session, the one source of what its clients hear."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import redis
import redis.asyncio

from core import valkey
from core.events.base import Event
from core.events.groups import pubsub_channel, session_name

LONGEST = 5_000  # events
SECONDS_TO_LIVE = 24 * 60 * 60
GAP = 1_000_000  # more events than a session can have had since any seq that the database knows
CLOSED_TASKS = 1_000  # of a session, remembered against a second end
TRIES, RETRY_SECONDS = 60, 0.5

_script = (Path(__file__).parent / "append.lua").read_text()
_sha = hashlib.sha1(_script.encode(), usedforsecurity=False).hexdigest()
_appenders: WeakKeyDictionary[asyncio.AbstractEventLoop, _Appender] = WeakKeyDictionary()


def _log(name: str) -> str:
    return f"nooble:log:{{{name}}}"


def _marks(name: str) -> str:
    return f"nooble:marks:{{{name}}}"


async def append(event: Event, attempt: int | None = None, *, floor: int | None = None) -> int | None:
    """Keep the event in its session's log, tell the session's open sockets, and return its seq.

    One script does both, so the hints of a session leave in the order of its log, whichever process
    appends.

    `floor` is a seq that was given in this session, or 0 while nobody can have heard one: a log that
    was lost (after a day of silence, or with Valkey's data) goes on far above it. Without one the
    event is appended only to a log that lives.

    None when it was refused: a stale attempt, or a second end. Raises redis.RedisError or OSError; to
    append the same event again is safe then.
    """
    if event.session_id is None:
        raise ValueError("an event of no session has no log")
    name = session_name(event.tenant_id, event.session_id)
    loop = asyncio.get_running_loop()
    if loop not in _appenders:
        _appenders[loop] = _Appender()
    seq = await _appenders[loop].append(
        _log(name),
        _marks(name),
        f"nooble:closed:{{{name}}}",
        event.body(),
        str(event.task_id) if event.task_id else "",
        attempt if attempt is not None else "",
        event.closes,
        str(event.event_id),
        LONGEST,
        SECONDS_TO_LIVE,
        pubsub_channel(name),
        event.tenant_id,
        event.session_id,
        floor if floor is not None else "",
        GAP,
        CLOSED_TASKS,
    )
    return seq or None


async def append_patiently(event: Event, attempt: int | None = None, *, floor: int) -> int | None:
    """`append`, again and again for half a minute while Valkey is away. Raises what it raises then."""
    for _ in range(TRIES):
        try:
            return await append(event, attempt, floor=floor)
        except (redis.RedisError, OSError):
            await asyncio.sleep(RETRY_SECONDS)
    return await append(event, attempt, floor=floor)


async def read(name: str, after: int, limit: int = 500) -> list[tuple[int, bytes]]:
    """Up to `limit` events `(seq, body)` of the log `name` that came after seq `after`, in order."""
    entries: Any = await valkey.async_client().xrange(_log(name), min=f"({after}-0", count=limit)
    return [(int(entry_id.split(b"-")[0]), fields[b"e"]) for entry_id, fields in entries]


async def last_seq(name: str) -> int | None:
    """The log's tail, or None where there is no log: a new session's, or one that was lost."""
    seq = await valkey.async_client().hget(_marks(name), "seq")
    return int(seq) if seq is not None else None


def last_seq_sync(name: str) -> int | None:
    """`last_seq`, for threads."""
    seq: Any = valkey.client().hget(_marks(name), "seq")
    return int(seq) if seq is not None else None


def begin(name: str) -> None:
    """A new session's log, for threads: from now on, a log that is not there is one that was lost."""
    _set_seq(name, 0)


def revive(name: str, floor: int) -> int:
    """The tail of a log that was lost, for threads: far above `floor`, a seq that was given."""
    _set_seq(name, floor + GAP)
    return last_seq_sync(name) or 0


def _set_seq(name: str, seq: int) -> None:
    pipeline = valkey.client().pipeline(transaction=False)
    pipeline.hsetnx(_marks(name), "seq", str(seq))
    pipeline.expire(_marks(name), SECONDS_TO_LIVE)
    pipeline.execute()


class _Appender:
    """Appends of one loop, in one pipeline at a time.

    What arrives while a pipeline is under way leaves with the next: a hundred runs that stream at
    once share the cost of a round trip, and a single one does not wait.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[int]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def append(self, *arguments: Any) -> int:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((arguments, answer))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        return await answer

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._send(batch)
        finally:
            self._flushing = None

    async def _send(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[int]]]) -> None:
        try:
            seqs = await self._run(batch)
        except (redis.RedisError, OSError) as error:
            seqs = [error] * len(batch)
        for (_, answer), seq in zip(batch, seqs, strict=True):
            if answer.done():
                continue  # nobody waits any more
            if isinstance(seq, BaseException):
                answer.set_exception(seq)
            else:
                answer.set_result(seq)

    async def _run(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[int]]]) -> list[Any]:
        async with valkey.async_client().pipeline(transaction=False) as pipeline:
            for arguments, _ in batch:
                pipeline.evalsha(_sha, 3, *arguments)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        if any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
            # A server that has just started: it knows none of them, so nothing was appended.
            await valkey.async_client().script_load(_script)
            return await self._run(batch)
        return answers
