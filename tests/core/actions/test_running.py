"""The runs of this process: what the heartbeat renews, and why they stop."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Event

import pytest

from core import aio
from core.actions import heartbeat, running
from core.actions.running import Run, Stopped, StopReason, until_stopped

PATIENCE = 10


class Speaker:
    """A run that speaks until it is stopped."""

    def __init__(self, thread: ThreadPoolExecutor, attempt: int | None = 1) -> None:
        self.task_id = uuid.uuid4()
        self.attempt = attempt
        self.began = Event()
        self.end: Future[None] = thread.submit(self._work)
        assert self.began.wait(PATIENCE)

    def _work(self) -> None:
        with running.running(self.task_id) as run:
            assert run is not None
            run.attempt = self.attempt
            aio.run(until_stopped(self.task_id, self._speak()))

    async def _speak(self) -> None:
        self.began.set()
        await asyncio.Event().wait()

    def stopped_for(self) -> StopReason:
        with pytest.raises(Stopped) as stopped:
            self.end.result(PATIENCE)
        return stopped.value.reason


@pytest.fixture(autouse=True)
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs have no rows: the process's heartbeat would stop them as lost."""
    monkeypatch.setattr(heartbeat, "beat", lambda: None)


@pytest.fixture
def speak() -> Iterator[Callable[..., Speaker]]:
    with ThreadPoolExecutor(4) as thread:
        yield lambda **fields: Speaker(thread, **fields)
        running.hand_over()


Speak = Callable[..., Speaker]


@pytest.mark.parametrize("reason", StopReason)
def test_a_run_learns_why_it_stops(speak: Speak, reason: StopReason) -> None:
    speaker = speak()
    running.stop(speaker.task_id, reason)
    assert speaker.stopped_for() == reason


def test_only_the_attempt_that_was_meant_stops(speak: Speak) -> None:
    speaker = speak(attempt=2)
    running.stop(speaker.task_id, StopReason.LOST, attempt=1)
    running.stop(speaker.task_id, StopReason.CANCELLED, attempt=2)
    assert speaker.stopped_for() == StopReason.CANCELLED


def test_what_is_not_claimed_yet_is_not_renewed(speak: Speak) -> None:
    claimed, unclaimed = speak(attempt=3), speak(attempt=None)
    assert running.claimed() == {claimed.task_id: 3}
    assert unclaimed.task_id in running._runs


def test_a_hand_over_stops_every_run_of_the_process(speak: Speak) -> None:
    speakers = [speak() for _ in range(3)]
    running.hand_over()
    assert {speaker.stopped_for() for speaker in speakers} == {StopReason.HANDED_OVER}
    assert running.claimed() == {}


def test_a_stop_for_a_task_that_runs_elsewhere_is_nothing() -> None:
    running.stop(uuid.uuid4(), StopReason.CANCELLED)


def test_the_first_word_is_the_one_that_counts() -> None:
    """A run that was cancelled is not handed over, and the other way round."""
    task_id = uuid.uuid4()

    async def speak() -> None:
        raise AssertionError("it was stopped before")

    def both(run: Run) -> None:
        run.stop(StopReason.CANCELLED)
        run.stop(StopReason.HANDED_OVER)

    entered: AbstractContextManager[Run | None] = running.running(task_id)
    with entered as run, pytest.raises(Stopped) as stopped:
        assert run is not None
        aio.loop().call_soon_threadsafe(both, run)
        aio.run(until_stopped(task_id, speak()))
    assert stopped.value.reason == StopReason.CANCELLED


def test_a_coroutine_that_is_cancelled_by_somebody_else_stays_cancelled() -> None:
    task_id = uuid.uuid4()

    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def whole() -> str:
        try:
            await until_stopped(task_id, cancel_itself())
        except asyncio.CancelledError:
            return "cancelled"
        return "nothing"

    with running.running(task_id):
        assert aio.run(whole()) == "cancelled"
