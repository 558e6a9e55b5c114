"""The answer of the run in progress, kept by the script that appends its events."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core import aio, valkey
from core.events import log
from core.events.base import Event
from core.events.groups import session_name
from core.events.log import Growth, RunningAnswer
from core.events.tasks import StatusUpdate, TaskStatusUpdate


class Piece(Event):
    event: str = "piece"
    service: Any = "agent-execution"


class RunEnd(Piece):
    closes = "run"


class TaskEnd(Piece):
    closes = "task"


class Run:
    """One attempt of a run that streams into a session's log, as a worker does."""

    def __init__(
        self, session: str | None = None, attempt: int = 1, task_id: uuid.UUID | None = None
    ) -> None:
        self.session = session or f"s-{uuid.uuid4().hex}"
        self.name = session_name("demo", self.session)
        self.task_id = task_id or uuid.uuid4()
        self.attempt = attempt
        self.text = ""
        self.asked = 0  # how often the log wanted the whole

    def event(self, kind: type[Event] = Piece) -> Event:
        return kind(
            task_id=self.task_id,
            global_task_id=self.task_id,
            tenant_id="demo",
            session_id=self.session,
            data=None,
        )

    def say(self, piece: str, floor: int = 0) -> int | None:
        offset, self.text = len(self.text.encode()), self.text + piece

        entry = self.event()

        def whole() -> tuple[Event, bytes]:
            self.asked += 1
            return entry, self.text.encode()

        growth = Growth(offset, piece.encode(), whole)
        return aio.run(log.append(entry, self.attempt, floor=floor, growth=growth))

    def end(self, kind: type[Event] = RunEnd) -> int | None:
        return aio.run(log.append(self.event(kind), self.attempt, floor=0))

    def seen(self) -> tuple[RunningAnswer | None, int | None]:
        """What a reader sees, of either kind."""
        seen = aio.run(log.running_answer(self.name))
        assert seen == log.running_answer_sync(self.name)
        return seen

    def answer(self) -> RunningAnswer:
        return RunningAnswer(self.task_id, self.attempt, self.text)

    def lose(self, *keys: str) -> None:
        valkey.client().delete(
            *(keys or (log._log(self.name), log._marks(self.name), log._answer(self.name)))
        )


def test_a_session_without_a_run_has_no_answer() -> None:
    run = Run()
    assert run.seen() == (None, None)
    log.begin(run.name)
    assert run.seen() == (None, 0)


def test_the_answer_grows_with_the_log() -> None:
    run = Run()
    run.say("")
    assert run.seen() == (run.answer(), 1)
    for number, piece in enumerate(["Hello", ", ", "¿qué?", "\n\n", "🎈", " \x00 end"], start=2):
        run.say(piece)
        assert run.seen() == (run.answer(), number)
    assert run.asked == 0


@pytest.mark.parametrize("kind", [RunEnd, TaskEnd])
def test_an_end_takes_the_answer_away(kind: type[Event]) -> None:
    run = Run()
    run.say("text")
    run.end(kind)
    assert run.seen() == (None, 2)


def test_the_end_of_a_run_leaves_the_next_ones_answer() -> None:
    """A settled run tells its end when the next one has begun already."""
    first = Run()
    first.say("first")
    second = Run(first.session)
    second.say("second")
    assert first.end() == 3
    assert first.end(TaskEnd) == 4
    assert second.seen() == (second.answer(), 4)


def test_a_new_attempt_begins_anew_and_the_old_one_changes_nothing() -> None:
    old = Run()
    old.say("old")
    new = Run(old.session, attempt=2, task_id=old.task_id)
    new.say("")
    assert new.seen() == (new.answer(), 2)
    assert old.say(" and late") is None
    new.say("new")
    assert new.seen() == (new.answer(), 3)


def test_a_status_in_between_changes_nothing() -> None:
    run = Run()
    run.say("text")
    update = TaskStatusUpdate(
        task_id=run.task_id,
        global_task_id=run.task_id,
        tenant_id="demo",
        session_id=run.session,
        data=StatusUpdate(status="cancelling", details={}),
    )
    aio.run(log.append(update))
    assert run.seen() == (run.answer(), 2)
    run.say(" goes on")
    assert run.seen() == (run.answer(), 3)


def test_a_piece_that_is_sent_again_counts_once() -> None:
    run = Run()
    run.say("a")
    entry = run.event()
    growth = Growth(1, b"b", lambda: (entry, b"ab"))
    assert [aio.run(log.append(entry, 1, floor=0, growth=growth)) for _ in range(3)] == [2, 2, 2]
    run.text = "ab"
    assert run.seen() == (run.answer(), 2)


@pytest.mark.parametrize("lost", ["everything", "the answer", "the log"])
def test_an_answer_that_was_lost_becomes_whole_with_its_next_piece(lost: str) -> None:
    run = Run()
    for piece in ("ein", "é", "🎈"):
        run.say(piece)
    run.lose(
        *{"everything": [], "the answer": [log._answer(run.name)], "the log": [log._log(run.name)]}[lost]
    )
    seq = run.say("more", floor=3)
    assert run.seen() == (run.answer(), seq)
    assert run.asked == (lost != "the log")
    seq = run.say("!", floor=seq or 0)
    assert run.seen() == (run.answer(), seq)
    assert run.asked == (lost != "the log")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: kept[:-1],
        lambda kept: kept + b"x",
        lambda kept: kept.replace(b" 1\n", b" 2\n"),
        lambda kept: kept.replace(b"-", b"+", 1),
        lambda kept: b"",
    ],
    ids=["shorter", "longer", "another attempt's", "another task's", "empty"],
)
def test_an_answer_that_is_not_what_came_before_becomes_whole(spoil: Callable[[bytes], bytes]) -> None:
    run = Run()
    run.say("abc")
    key = log._answer(run.name)
    kept = valkey.client().get(key)
    assert isinstance(kept, bytes)
    valkey.client().set(key, spoil(kept))
    run.say("d")
    assert run.seen() == (run.answer(), 2)
    assert run.asked == 1


def test_what_does_not_fit_is_not_appended_before_it_is_whole() -> None:
    """The answer is never shorter than the events that a reader of the log's tail has passed."""
    run = Run()
    run.say("abc")
    run.lose(log._answer(run.name))
    seen: list[Any] = []

    entry = run.event()

    def whole() -> tuple[Event, bytes]:
        seen.append(log.running_answer_sync(run.name))
        return entry, b"abcd"

    growth = Growth(3, b"d", whole)
    assert aio.run(log.append(entry, 1, floor=0, growth=growth)) == 2
    assert seen == [(None, 1)]


@hypothesis_settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "", "", "answer", "log", "everything", "end", "attempt", "next"]),
            st.text(max_size=4).map(lambda text: text.encode("utf-8", "replace").decode()),
        ),
        max_size=15,
    )
)
def test_whatever_is_lost_the_answer_is_whole_after_each_piece(steps: list[tuple[str, str]]) -> None:
    run, floor = Run(), 0
    for fate, piece in steps:
        if fate == "answer":
            run.lose(log._answer(run.name))
        elif fate == "log":
            run.lose(log._log(run.name))
        elif fate == "everything":
            run.lose()
        elif fate == "attempt":
            run = Run(run.session, run.attempt + 1, run.task_id)
        elif fate in ("end", "next"):
            if fate == "end":
                run.end()
            run = Run(run.session)
        seq = run.say(piece, floor=floor)
        assert seq is not None and seq > floor
        floor = seq
        assert run.seen() == (run.answer(), seq)


def test_a_reader_always_sees_the_text_that_belongs_to_the_tail() -> None:
    run = Run()
    lengths: list[tuple[int, int]] = []

    async def read(writing: asyncio.Task[None]) -> None:
        while not writing.done():
            answer, tail = await log.running_answer(run.name)
            if answer is not None and tail is not None:
                lengths.append((len(answer.text), tail))

    async def write() -> None:
        for number in range(300):
            entry = run.event()
            growth = Growth(number, b"x", lambda entry=entry: (entry, b""))  # type: ignore[misc]
            await log.append(entry, 1, floor=0, growth=growth)

    async def both() -> None:
        writing = asyncio.create_task(write())
        await asyncio.gather(writing, read(writing))

    aio.run(both())
    assert len(lengths) > 10
    assert all(length == tail for length, tail in lengths)


def test_an_answer_lives_for_a_day_after_its_last_piece() -> None:
    run = Run()
    run.say("a")
    assert valkey.client().expire(log._answer(run.name), 60)
    run.say("b")
    assert 24 * 60 * 60 - 60 <= valkey.client().ttl(log._answer(run.name)) <= 24 * 60 * 60


def test_an_answer_of_two_million_characters_is_kept_whole() -> None:
    run = Run()
    piece = "🎈" * 100_000
    for _ in range(20):
        run.say(piece)
    assert run.seen() == (run.answer(), 20)
    assert run.asked == 0
