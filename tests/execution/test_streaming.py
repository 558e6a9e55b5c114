"""From a run's tokens to its clients' frames; over the real Valkey."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core import aio, valkey
from core.events import log
from core.events.base import Event
from core.events.groups import session_name
from execution import streaming
from execution.streaming import AnswerStream, RunIdentity

append_really = log.append


def identity(attempt: int = 1, floor: int = 0) -> RunIdentity:
    task_id = uuid.uuid4()
    return RunIdentity(
        task_id=task_id,
        global_task_id=task_id,
        tenant_id="demo",
        session_id=f"s-{uuid.uuid4().hex}",
        agent_id=uuid.uuid4(),
        version=3,
        attempt=attempt,
        floor=floor,
    )


async def logged(run: RunIdentity) -> list[dict[str, Any]]:
    """What the log holds, with or without holes."""
    entries = await valkey.async_client().xrange(log._log(session_name(run.tenant_id, run.session_id)))
    return [json.loads(fields[b"e"]) | {"seq": int(entry_id.split(b"-")[0])} for entry_id, fields in entries]


async def frames_of(run: RunIdentity) -> list[dict[str, Any]]:
    return [event["data"] for event in await logged(run) if event["event"] == "agent_response_token"]


async def until_frames(run: RunIdentity, number: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        while True:
            frames = await frames_of(run)
            if len(frames) >= number:
                return frames


async def stream(run: RunIdentity, pieces: list[str], *, complete: bool = True) -> int:
    async with AnswerStream(run) as answer:
        for piece in pieces:
            answer.add(piece)
            await asyncio.sleep(0)
        if complete:
            answer.complete()
    return answer.last_seq


class Fragile:
    """The real append, watched; it fails as often as it is told to, before or after the fact."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.in_flight = 0
        self.most = 0
        self.before: list[Exception] = []
        self.after: list[Exception] = []
        self.calls = 0
        self.recovered = asyncio.Event()  # after the last failure before the fact
        monkeypatch.setattr(log, "append", self.append)

    async def append(self, event: Event, attempt: int | None = None, **more: Any) -> int | None:
        self.calls += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(0)
            if self.before:
                error = self.before.pop()
                if not self.before:
                    self.recovered.set()
                raise error
            seq = await append_really(event, attempt, **more)
            if self.after:
                raise self.after.pop()
            return seq
        finally:
            self.in_flight -= 1


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> Fragile:
    monkeypatch.setattr(log, "RETRY_SECONDS", 0)
    return Fragile(monkeypatch)


def test_a_run_begins_with_who_runs_it() -> None:
    run = identity(attempt=2)
    aio.run(stream(run, []))
    started = aio.run(logged(run))[0]
    assert (started["event"], started["service"]) == ("agent_execution_started", "agent-execution")
    assert started["data"] == {"agent_id": str(run.agent_id), "version": 3, "attempt": 2}
    assert (started["task_id"], started["tenant_id"]) == (str(run.task_id), "demo")


def test_the_first_token_goes_at_once() -> None:
    async def scenario() -> list[dict[str, Any]]:
        run = identity()
        async with AnswerStream(run) as answer:
            answer.add("first")
            frames = await until_frames(run, 1)  # nothing else was said, nothing was closed
            answer.add(" second")
            answer.complete()
        return frames

    assert aio.run(scenario()) == [{"token": "first", "offset": 0, "is_final": False}]


def check(frames: list[dict[str, Any]], text: str, *, complete: bool = True) -> None:
    assert "".join(frame["token"] for frame in frames) == text
    offset = 0
    for frame in frames:
        assert frame["offset"] == offset
        offset += len(frame["token"])
    finals = [frame["is_final"] for frame in frames]
    assert finals == [False] * (len(frames) - 1) + [True] if complete else not any(finals)


@hypothesis_settings(max_examples=25)
@given(st.lists(st.text(min_size=1, max_size=8), max_size=15), st.booleans())
def test_frames_join_to_the_text_and_the_last_one_says_so(pieces: list[str], complete: bool) -> None:
    pieces = [piece.encode("utf-8", "replace").decode() for piece in pieces]
    run = identity()
    last_seq = aio.run(stream(run, pieces, complete=complete))
    events = aio.run(logged(run))
    check(aio.run(frames_of(run)), "".join(pieces), complete=complete)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert last_seq == len(events)


def test_offsets_count_code_points() -> None:
    async def scenario() -> list[dict[str, Any]]:
        run = identity()
        async with AnswerStream(run) as answer:
            for number, piece in enumerate(["🎈", "é", "世界", "x"], start=1):
                answer.add(piece)
                await until_frames(run, number)
            answer.complete()
        return await frames_of(run)

    assert [frame["offset"] for frame in aio.run(scenario())] == [0, 1, 2, 4, 5]


def test_an_answer_of_nothing_still_ends() -> None:
    run = identity()
    aio.run(stream(run, []))
    assert aio.run(frames_of(run)) == [{"token": "", "offset": 0, "is_final": True}]


def test_never_two_publishes_of_a_run_in_flight(fragile: Fragile) -> None:
    run = identity()
    pieces = [f"t{number} " for number in range(500)]
    aio.run(stream(run, pieces))
    assert fragile.most == 1
    frames = aio.run(frames_of(run))
    check(frames, "".join(pieces))
    assert len(frames) < 100  # under load the frames grow


@pytest.mark.parametrize("error", [redis.ConnectionError(), redis.TimeoutError(), OSError()])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_append_that_failed_is_tried_again_without_loss_or_repeat(
    fragile: Fragile, moment: str, error: Exception
) -> None:
    run = identity()
    setattr(fragile, moment, [error] * 3)
    aio.run(stream(run, ["a", "b", "c"]))
    events = aio.run(logged(run))
    assert [event["event"] for event in events].count("agent_execution_started") == 1
    check(aio.run(frames_of(run)), "abc")


def test_a_valkey_that_stays_away_does_not_hold_the_run_for_ever(
    fragile: Fragile, caplog: pytest.LogCaptureFixture
) -> None:
    fragile.before = [redis.ConnectionError()] * 1_000
    assert aio.run(stream(identity(), ["lost"])) == 0
    assert caplog.text.count("a frame was lost") == 2
    assert fragile.calls == 2 * (log.TRIES + 1)  # the beginning and the answer


def test_a_stale_attempt_says_nothing() -> None:
    run = identity(attempt=1)
    aio.run(stream(run, ["old"]))

    async def newer_then_older() -> None:
        newer = RunIdentity(**{name: getattr(run, name) for name in run.__slots__} | {"attempt": 2})
        await stream(newer, ["new"])
        await stream(run, ["late"])

    aio.run(newer_then_older())
    assert "".join(frame["token"] for frame in aio.run(frames_of(run))) == "oldnew"


def test_an_error_ends_the_pump_with_the_run() -> None:
    async def scenario() -> None:
        with pytest.raises(LookupError):
            async with AnswerStream(identity()) as answer:
                answer.add("x")
                raise LookupError
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await answer._pump

    aio.run(scenario())


def test_a_log_that_is_lost_between_runs_goes_on_above_the_floor() -> None:
    run = identity(floor=7)
    last_seq = aio.run(stream(run, ["a"]))
    seqs = [event["seq"] for event in aio.run(logged(run))]
    assert seqs == [7 + log.GAP + 1, 7 + log.GAP + 2]
    assert last_seq == seqs[-1]


def test_a_run_that_was_heard_of_by_nobody_saw_its_floor(fragile: Fragile) -> None:
    fragile.before = [redis.ConnectionError()] * 1_000
    assert aio.run(stream(identity(floor=7), ["lost"])) == 7


@pytest.mark.parametrize("floor", [0, 7])
def test_a_log_that_is_lost_during_a_run_gives_no_seq_twice(floor: int) -> None:
    async def scenario() -> list[int]:
        run = identity(floor=floor)
        seen: list[int] = []
        async with AnswerStream(run) as answer:
            for piece in ("a", "b", "c"):
                answer.add(piece)
                await until_frames(run, 1)
                seen += [event["seq"] for event in await logged(run)]
                name = session_name(run.tenant_id, run.session_id)
                await valkey.async_client().delete(log._log(name), log._marks(name))
        return seen

    seqs = aio.run(scenario())
    assert len(seqs) == 4
    assert seqs == sorted(set(seqs))


async def until_said(run: RunIdentity, length: int) -> str:
    """The answer so far, as soon as it has that many characters."""
    async with asyncio.timeout(10):
        while True:
            found = await running(run)
            if found is not None and len(found.text) >= length:
                return found.text


async def running(run: RunIdentity) -> log.RunningAnswer | None:
    answer, _ = await log.running_answer(session_name(run.tenant_id, run.session_id))
    return answer


def test_the_answer_so_far_can_be_read_while_it_grows() -> None:
    async def scenario() -> list[str]:
        run, texts = identity(attempt=2), []
        async with AnswerStream(run) as answer:
            await until_frames(run, 0)
            for number, piece in enumerate(["Hola", " 🎈", " fin"], start=1):
                answer.add(piece)
                await until_frames(run, number)
                found = await running(run)
                assert found is not None
                assert (found.task_id, found.attempt) == (run.task_id, 2)
                texts.append(found.text)
            answer.complete()
        return texts

    assert aio.run(scenario()) == ["Hola", "Hola 🎈", "Hola 🎈 fin"]


def test_the_whole_is_sent_only_when_it_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counted(log.Growth):
        def __init__(self, offset: int, piece: bytes, whole: Callable[[], Any]) -> None:
            def counted() -> Any:
                asked.append(offset)
                return whole()

            super().__init__(offset, piece, counted)

    monkeypatch.setattr(streaming, "Growth", Counted)

    async def scenario() -> None:
        run = identity()
        name = session_name(run.tenant_id, run.session_id)
        async with AnswerStream(run) as answer:
            for number, piece in enumerate(["é", "🎈", "x"], start=1):
                answer.add(piece)
                await until_frames(run, number)
            assert asked == []
            await valkey.async_client().delete(log._answer(name))
            answer.add("y")
            await until_frames(run, 4)
            answer.complete()

    aio.run(scenario())
    assert asked == [len("é🎈x".encode())]


def test_a_run_that_has_said_nothing_has_an_empty_answer() -> None:
    run = identity()
    aio.run(stream(run, [], complete=False))
    assert aio.run(running(run)) == log.RunningAnswer(run.task_id, 1, "")


def test_a_new_attempt_forgets_what_the_one_before_streamed() -> None:
    run = identity(attempt=1)
    aio.run(stream(run, ["half of"], complete=False))
    newer = RunIdentity(**{name: getattr(run, name) for name in run.__slots__} | {"attempt": 2})
    aio.run(stream(newer, ["all"]))
    assert aio.run(running(run)) == log.RunningAnswer(run.task_id, 2, "all")


@hypothesis_settings(max_examples=15)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.booleans()), min_size=1, max_size=6))
def test_an_answer_that_valkey_loses_is_whole_again_with_the_next_frame(
    pieces: list[tuple[str, bool]],
) -> None:
    async def scenario() -> None:
        run, text = identity(), ""
        name = session_name(run.tenant_id, run.session_id)
        async with AnswerStream(run) as answer:
            for piece, lost in pieces:
                piece = piece.encode("utf-8", "replace").decode()
                if lost:
                    await valkey.async_client().delete(log._log(name), log._marks(name), log._answer(name))
                answer.add(piece)
                text += piece
                assert await until_said(run, len(text)) == text
            answer.complete()

    aio.run(scenario())


def test_frames_that_were_lost_are_in_the_answer_all_the_same(fragile: Fragile) -> None:
    async def scenario() -> log.RunningAnswer | None:
        run = identity()
        async with AnswerStream(run) as answer:
            answer.add("first, ")
            await until_frames(run, 1)
            fragile.before = [redis.ConnectionError()] * (log.TRIES + 1)
            answer.add("lost, ")
            await fragile.recovered.wait()
            answer.add("last")
            answer.complete()
        # The whole, since the log knows of no more than the first.
        assert [frame["token"] for frame in await frames_of(run)] == ["first, ", "first, lost, last"]
        return await running(run)

    found = aio.run(scenario())
    assert found is not None
    assert found.text == "first, lost, last"
