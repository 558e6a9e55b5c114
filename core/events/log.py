"""The session log: a Valkey stream per session, the one source of what its clients hear.

A run without a session has a log of its own, named by its task.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import redis
import redis.asyncio

from core import valkey
from core.events.base import Event
from core.events.groups import log_name, pubsub_channel

LONGEST = 5_000  # events
SECONDS_TO_LIVE = 24 * 60 * 60
TASK_SECONDS_TO_LIVE = 60 * 60  # of the log of a task without a session: its end is in its row
GAP = 1_000_000  # more events than a session can have had since any seq that the database knows
PACE = 10_000  # events a second: more than any session can have on average
CLOSED_TASKS = 1_000  # of a session, remembered against a second end
TRIES, RETRY_SECONDS = 60, 0.5
NAMES_AT_ONCE = 500

_FOLDER = Path(__file__).parent
_beyond = (_FOLDER / "beyond.lua").read_text()
_script = _beyond + (_FOLDER / "append.lua").read_text()
_revive = _beyond + (_FOLDER / "revive.lua").read_text()
_sha = hashlib.sha1(_script.encode(), usedforsecurity=False).hexdigest()
_appenders: WeakKeyDictionary[asyncio.AbstractEventLoop, _Appender] = WeakKeyDictionary()


def _log(name: str) -> str:
    return f"nooble:log:{{{name}}}"


def _marks(name: str) -> str:
    return f"nooble:marks:{{{name}}}"


def _answer(name: str) -> str:
    return f"nooble:answer:{{{name}}}"


class Hole(Exception):
    """The log has lost what came after a seq: trimmed, expired, or gone with Valkey's data."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What an event adds to the answer of its run, which the log keeps as it grows.

    `offset` bytes of the answer come before `piece`; at 0 the answer begins anew. `whole` gives the event
    again, with the answer up to and with the piece: it is asked for when what came before has been lost.
    """

    offset: int
    piece: bytes
    whole: Callable[[], tuple[Event, bytes]]


@dataclass(frozen=True, slots=True)
class RunningAnswer:
    """The answer of a session's run up to now."""

    task_id: uuid.UUID
    attempt: int
    text: str


async def append(
    event: Event, attempt: int | None = None, *, floor: int | None = None, growth: Growth | None = None
) -> int | None:
    """Keep the event in its session's log, tell the session's open sockets, and return its seq.

    One script does both, so the hints of a session leave in the order of its log, whichever process
    appends. It also lets the running answer grow by `growth`, which needs an `attempt`: at any moment
    that answer is what the log's events say of it.

    `floor` is a seq that was given in this session, or 0 while nobody can have heard one: a log that
    was lost (after a day of silence, or with Valkey's data) goes on far above it. Without one the
    event is appended only to a log that lives.

    None when it was refused: a stale attempt, or a second end. Raises redis.RedisError or OSError; to
    append the same event again is safe then.
    """
    loop = asyncio.get_running_loop()
    if loop not in _appenders:
        _appenders[loop] = _Appender()
    offset, piece = (growth.offset, growth.piece) if growth else ("", b"")
    seq = await _appenders[loop].append(*_arguments(event, attempt, floor, offset, piece))
    if seq == -1 and growth is not None:
        event, piece = growth.whole()
        seq = await _appenders[loop].append(*_arguments(event, attempt, floor, 0, piece))
    return seq or None


def _arguments(
    event: Event, attempt: int | None, floor: int | None, offset: int | str, piece: bytes
) -> tuple[Any, ...]:
    """Keys and arguments of the script."""
    if event.session_id is None or not (event.session_id or event.task_id):
        raise ValueError("an event of no session and no run has no log")
    name = log_name(event.tenant_id, event.session_id, event.task_id)
    return (
        _log(name),
        _marks(name),
        f"nooble:closed:{{{name}}}",
        _answer(name),
        event.body(),
        str(event.task_id) if event.task_id else "",
        attempt if attempt is not None else "",
        event.closes,
        str(event.event_id),
        LONGEST,
        SECONDS_TO_LIVE if event.session_id else TASK_SECONDS_TO_LIVE,
        pubsub_channel(name),
        event.tenant_id,
        event.session_id,
        floor if floor is not None else "",
        GAP,
        CLOSED_TASKS,
        offset,
        piece,
        PACE,
    )


async def append_patiently(
    event: Event, attempt: int | None = None, *, floor: int, growth: Growth | None = None
) -> int | None:
    """`append`, again and again for half a minute while Valkey is away. Raises what it raises then."""
    for _ in range(TRIES):
        try:
            return await append(event, attempt, floor=floor, growth=growth)
        except (redis.RedisError, OSError):
            await asyncio.sleep(RETRY_SECONDS)
    return await append(event, attempt, floor=floor, growth=growth)


async def read(name: str, after: int, limit: int = 500) -> list[tuple[int, bytes]]:
    """Up to `limit` events `(seq, body)` of the log `name` that came after seq `after`, in order.

    They follow each other and `after` without a gap; none when `after` is the tail. Raises Hole when
    what came next is not there, also when nobody knows any more whether anything did.
    """
    async with valkey.async_client().pipeline(transaction=False) as pipeline:
        # The tail first: what it says is appended by then.
        pipeline.hget(_marks(name), "seq")
        pipeline.xrange(_log(name), min=f"({after}-0", count=limit)
        tail, entries = await pipeline.execute()
    events: list[tuple[int, bytes]] = []
    for entry_id, fields in entries:
        seq = int(entry_id.split(b"-")[0])
        if seq != after + len(events) + 1:
            break  # the next reading says so
        events.append((seq, fields[b"e"]))
    if not events and (entries or int(tail or 0) != after):
        raise Hole(f"{name} after {after}")
    return events


async def running_answer(name: str) -> tuple[RunningAnswer | None, int | None]:
    """The answer of the run that goes on in a session, and the log's tail at that moment."""
    async with valkey.async_client().pipeline(transaction=True) as pipeline:
        pipeline.get(_answer(name))
        pipeline.hget(_marks(name), "seq")
        return _running(*await pipeline.execute())


def running_answer_sync(name: str) -> tuple[RunningAnswer | None, int | None]:
    """`running_answer`, for threads."""
    pipeline = valkey.client().pipeline(transaction=True)
    pipeline.get(_answer(name))
    pipeline.hget(_marks(name), "seq")
    return _running(*pipeline.execute())


def _running(kept: bytes | None, seq: bytes | None) -> tuple[RunningAnswer | None, int | None]:
    answer = None
    if kept is not None:
        head, _, text = kept.partition(b"\n")
        task_id, attempt = head.decode().split()
        answer = RunningAnswer(uuid.UUID(task_id), int(attempt), text.decode())
    return answer, int(seq) if seq is not None else None


async def tails(names: Sequence[str]) -> list[int | None]:
    """`last_seq` of each name, in a round trip per some hundred of them."""
    seqs: list[bytes | None] = []
    for first in range(0, len(names), NAMES_AT_ONCE):
        async with valkey.async_client().pipeline(transaction=False) as pipeline:
            for name in names[first : first + NAMES_AT_ONCE]:
                pipeline.hget(_marks(name), "seq")
            seqs += await pipeline.execute()
    return [int(seq) if seq is not None else None for seq in seqs]


async def end_of(name: str, task_id: uuid.UUID) -> int | None:
    """The seq of the task's last event, or None: not yet ended, or forgotten."""
    mark = await valkey.async_client().hget(_marks(name), f"task:{task_id}")
    return _seq_of(mark)


def end_of_sync(name: str, task_id: uuid.UUID) -> int | None:
    """`end_of`, for threads."""
    return _seq_of(valkey.client().hget(_marks(name), f"task:{task_id}"))


def _seq_of(mark: Any) -> int | None:
    """A mark is `<event id> <seq>`."""
    return int(mark.split()[1]) if mark is not None else None


async def last_seq(name: str) -> int | None:
    """The log's tail, or None where there is no log: a new session's, or one that was lost."""
    seq = await valkey.async_client().hget(_marks(name), "seq")
    return int(seq) if seq is not None else None


def last_seq_sync(name: str) -> int | None:
    """`last_seq`, for threads; None also for the log of a session that was deleted."""
    seq, gone = valkey.client().hmget(_marks(name), "seq", "gone")
    return int(seq) if seq is not None and gone is None else None


def begin(name: str) -> int:
    """A new session's log, for threads: from now on, a log that is not there is one that was lost.

    The caller has just made the session's row: what was said of a deleted one holds no more. Gives the
    tail: 0, unless the log was told something before there was a session.
    """
    pipeline = valkey.client().pipeline(transaction=False)
    pipeline.hsetnx(_marks(name), "seq", "0")
    pipeline.hget(_marks(name), "seq")
    pipeline.hdel(_marks(name), "gone")
    pipeline.expire(_marks(name), SECONDS_TO_LIVE)
    return int(pipeline.execute()[1])


def forget(names: Sequence[str]) -> None:
    """Delete the logs of sessions, for threads; what is still on its way to them is refused for a day.

    A session that begins under the same id has a new log. Raises redis.RedisError.
    """
    pipeline = valkey.client().pipeline(transaction=False)
    for name in names:
        pipeline.delete(_log(name), _marks(name), f"nooble:closed:{{{name}}}", _answer(name))
        pipeline.hset(_marks(name), "gone", "1")
        pipeline.expire(_marks(name), SECONDS_TO_LIVE)
    pipeline.execute()


def revive(name: str, floor: int, *, sure: bool = False) -> int:
    """The tail of a log, for threads; of one that was lost, or has lost its end, far above `floor`.

    `floor` is a seq that was given. `sure`: the caller holds the session's row, so nobody deletes it now.
    """
    tail: Any = valkey.client().eval(
        _revive, 1, _marks(name), str(floor), str(GAP), str(SECONDS_TO_LIVE), str(PACE), str(int(sure))
    )
    return int(tail)


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
                pipeline.evalsha(_sha, 4, *arguments)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        if any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
            # A server that has just started: it knows none of them, so nothing was appended.
            await valkey.async_client().script_load(_script)
            return await self._run(batch)
        return answers
