"""How a running task hears that somebody wants it to stop; over the real Valkey."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from core import aio, valkey
from core.actions import cancellation, heartbeat, running
from core.actions.cancellation import hint
from core.actions.running import Stopped, StopReason, until_stopped

PATIENCE = 10
T = TypeVar("T")


def run_until_stopped(task_id: uuid.UUID, coroutine: Coroutine[Any, Any, T]) -> T:
    """As a Celery thread awaits a run on the process's loop."""
    return aio.run(until_stopped(task_id, coroutine))


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the process's heartbeat does not take these runs, which have no rows, for lost ones."""
    monkeypatch.setattr(heartbeat, "beat", lambda: None)
    cancellation.listen()


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


class Run:
    """A coroutine that never ends by itself, run in a thread of its own."""

    def __init__(self) -> None:
        self.task_id = uuid.uuid4()
        self.started = threading.Event()
        self.last_words = threading.Event()
        self.may_end = threading.Event()
        self.cancelled = 0

    def whole(self) -> str:
        with running.running(self.task_id):
            return run_until_stopped(self.task_id, self.forever())

    async def forever(self) -> str:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            self.last_words.set()
            while not self.may_end.is_set():
                try:
                    await asyncio.sleep(0.001)
                except asyncio.CancelledError:
                    self.cancelled += 1
            return "the text so far"
        return "never"


def every_hint_so_far_has_arrived() -> None:
    """Hints arrive in order: when one's own has been heard, so have those before it."""
    marker = Run()
    marker.may_end.set()
    with ThreadPoolExecutor(1) as threads:
        end = threads.submit(marker.whole)
        assert marker.started.wait(PATIENCE)
        hint(marker.task_id)
        assert end.result(PATIENCE) == "the text so far"


def test_a_hint_cancels_the_coroutine_and_lets_it_say_its_last_words(thread: ThreadPoolExecutor) -> None:
    run = Run()
    end = thread.submit(run.whole)
    assert run.started.wait(PATIENCE)
    hint(run.task_id)
    assert run.last_words.wait(PATIENCE)
    run.may_end.set()
    assert end.result(PATIENCE) == "the text so far"


def test_a_second_hint_does_not_disturb_the_last_words(thread: ThreadPoolExecutor) -> None:
    run = Run()
    end = thread.submit(run.whole)
    assert run.started.wait(PATIENCE)
    hint(run.task_id)
    assert run.last_words.wait(PATIENCE)
    hint(run.task_id)
    hint(run.task_id)
    every_hint_so_far_has_arrived()
    run.may_end.set()
    assert end.result(PATIENCE) == "the text so far"
    assert run.cancelled == 1


def test_a_coroutine_that_does_not_catch_it_ends_as_stopped(thread: ThreadPoolExecutor) -> None:
    task_id, started = uuid.uuid4(), threading.Event()

    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    def whole() -> None:
        with running.running(task_id):
            run_until_stopped(task_id, forever())

    end = thread.submit(whole)
    assert started.wait(PATIENCE)
    hint(task_id)
    with pytest.raises(Stopped) as stopped:
        end.result(PATIENCE)
    assert stopped.value.reason == StopReason.CANCELLED


def test_a_hint_that_comes_before_the_coroutine_is_not_lost() -> None:
    task_id, reached = uuid.uuid4(), []

    async def run() -> None:
        await asyncio.sleep(0)
        reached.append("the model was asked")

    with running.running(task_id):
        hint(task_id)
        every_hint_so_far_has_arrived()
        with pytest.raises(Stopped):
            run_until_stopped(task_id, run())
    assert reached == []


def test_a_hint_after_the_end_is_harmless() -> None:
    task_id = uuid.uuid4()

    async def run() -> str:
        return "done"

    with running.running(task_id):
        assert run_until_stopped(task_id, run()) == "done"
        hint(task_id)
        every_hint_so_far_has_arrived()
    hint(task_id)
    every_hint_so_far_has_arrived()
    assert not running._runs


def test_a_hint_concerns_its_own_task_only(thread: ThreadPoolExecutor) -> None:
    run = Run()
    run.may_end.set()
    end = thread.submit(run.whole)
    assert run.started.wait(PATIENCE)
    hint(uuid.uuid4())
    every_hint_so_far_has_arrived()
    assert not end.done()
    hint(run.task_id)
    assert end.result(PATIENCE) == "the text so far"


def test_an_error_of_the_run_reaches_its_thread_and_the_process_has_it_no_more() -> None:
    task_id = uuid.uuid4()

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError), running.running(task_id):
        run_until_stopped(task_id, fail())
    assert not running._runs


@pytest.mark.parametrize("noise", [b"", b"not a task", b"\xff\xfe"])
def test_noise_on_the_channel_does_not_deafen_the_process(
    noise: bytes, monkeypatch: pytest.MonkeyPatch, thread: ThreadPoolExecutor
) -> None:
    # A channel and a listener of this test's own.
    monkeypatch.setattr(cancellation, "CHANNEL", f"nooble:test:{uuid.uuid4()}")
    monkeypatch.setattr(cancellation, "_listening", None)
    cancellation.listen()
    run = Run()
    run.may_end.set()
    end = thread.submit(run.whole)
    assert run.started.wait(PATIENCE)
    valkey.client().publish(cancellation.CHANNEL, noise)
    hint(run.task_id)
    try:
        assert end.result(PATIENCE) == "the text so far"
    finally:
        running.stop(run.task_id, StopReason.CANCELLED)


def test_a_task_that_this_process_has_already_is_not_begun_again(thread: ThreadPoolExecutor) -> None:
    run = Run()
    run.may_end.set()
    end = thread.submit(run.whole)
    assert run.started.wait(PATIENCE)
    for _ in range(2):
        with running.running(run.task_id) as again:
            assert again is None
    hint(run.task_id)
    assert end.result(PATIENCE) == "the text so far"
    with running.running(run.task_id) as again:
        assert again is not None
    assert not running._runs
