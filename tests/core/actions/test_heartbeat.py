"""Leases of running tasks: renewed by one statement, and what it brings back."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import pytest
from django.db import OperationalError, connection

from core import aio
from core.actions import heartbeat, running
from core.actions.running import Stopped, StopReason, until_stopped
from core.models import Task, Tenant
from tests.factories import claim, lose_worker, make_task

PATIENCE = 10


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No beat but the test's own: another test's run may have begun the process's heartbeat."""
    monkeypatch.setattr(running, "_runs", {})


@pytest.fixture
def speak() -> Iterator[Callable[[Task], Callable[[], StopReason]]]:
    """Begin a claimed task's run, which speaks until it is stopped; why it was."""
    with ThreadPoolExecutor(4) as threads:

        def begin(task: Task) -> Callable[[], StopReason]:
            began = Event()

            async def forever() -> None:
                began.set()
                await asyncio.Event().wait()

            def whole() -> StopReason:
                with running.running(task.pk) as run:
                    assert run is not None
                    run.attempt = task.attempt
                    with pytest.raises(Stopped) as stopped:
                        aio.run(until_stopped(task.pk, forever()))
                    return stopped.value.reason

            end = threads.submit(whole)
            assert began.wait(PATIENCE)
            return lambda: end.result(PATIENCE)

        yield begin
        running.hand_over()


Speak = Callable[[Task], Callable[[], StopReason]]


def lease_of(task: Task) -> object:
    return Task.unscoped.values_list("lease_until", flat=True).get(pk=task.pk)


def test_a_beat_renews_all_runs_of_the_process_and_no_other(committed_tenant: Tenant, speak: Speak) -> None:
    mine = [claim(make_task(committed_tenant)) for _ in range(3)]
    other = claim(make_task(committed_tenant))
    for task in (*mine, other):
        lose_worker(task)
        if task is not other:
            speak(task)
    before = {task.pk: lease_of(task) for task in (*mine, other)}
    heartbeat.beat()
    assert [lease_of(task) > before[task.pk] for task in mine] == [True] * 3
    assert lease_of(other) == before[other.pk]
    assert len(running.claimed()) == 3


def test_a_beat_tells_what_a_lost_hint_did_not(committed_tenant: Tenant, speak: Speak) -> None:
    task, other = claim(make_task(committed_tenant)), claim(make_task(committed_tenant))
    stopped = speak(task)
    speak(other)
    assert Task.ask_to_cancel(task.pk, "ada")
    heartbeat.beat()
    assert stopped() == StopReason.CANCELLED
    assert running.claimed() == {other.pk: 1}


def test_a_beat_stops_a_run_that_has_become_another_workers(committed_tenant: Tenant, speak: Speak) -> None:
    task = claim(make_task(committed_tenant))
    stopped = speak(task)
    assert Task.unscoped.get(pk=task.pk).give_back(crashed=True)
    theirs = claim(task)
    before = lease_of(task)
    heartbeat.beat()
    assert stopped() == StopReason.LOST
    assert (theirs.attempt, lease_of(task)) == (2, before)


@pytest.mark.parametrize("end", ["completed", "gone"])
def test_a_beat_stops_a_run_whose_task_has_ended(committed_tenant: Tenant, speak: Speak, end: str) -> None:
    task = claim(make_task(committed_tenant))
    stopped = speak(task)
    if end == "gone":
        Task.unscoped.filter(pk=task.pk).delete()
    else:
        assert Task.unscoped.get(pk=task.pk).settle(end)
    heartbeat.beat()
    assert stopped() == StopReason.LOST


def test_without_runs_nobody_asks_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "renew", None)
    with running.running(uuid.uuid4()):
        heartbeat.beat()


class Enough(BaseException):
    """Ends a loop that has no end."""


def test_the_heartbeat_outlives_a_database_that_is_away(
    committed_tenant: Tenant, speak: Speak, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = claim(make_task(committed_tenant))
    lose_worker(task)
    before = lease_of(task)
    speak(task)
    renew = Task.renew
    ended: list[object] = []

    def end_my_connection() -> None:
        """As a restart of the database ends it."""
        connection.ensure_connection()
        pid = connection.connection.info.backend_pid

        def terminate() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
                ended.append(cursor.fetchone())
            connection.close()

        killer = Thread(target=terminate)
        killer.start()
        killer.join()

    def beaten(held: Iterable[tuple[uuid.UUID, int]]) -> dict[uuid.UUID, str]:
        if not ended:
            end_my_connection()
            with pytest.raises(OperationalError) as away:
                renew(held)
            raise away.value
        renew(held)
        raise Enough

    monkeypatch.setattr(heartbeat, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(Task, "renew", beaten)
    with ThreadPoolExecutor(1) as thread, pytest.raises(Enough):
        thread.submit(heartbeat._beat_forever).result(PATIENCE)
    assert ended == [(True,)]
    assert lease_of(task) > before


def test_a_process_has_one_heartbeat_and_a_fork_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork's copy of the parent's thread does not live."""
    begun: list[Event] = []

    def beats() -> None:
        begun.append(Event())
        assert begun[-1].wait(PATIENCE)

    monkeypatch.setattr(heartbeat, "_thread", None)
    monkeypatch.setattr(heartbeat, "_beat_forever", beats)
    heartbeat.start()
    first = heartbeat._thread
    assert first is not None
    heartbeat.start()
    assert heartbeat._thread is first
    begun[0].set()
    first.join(PATIENCE)
    heartbeat.start()
    second = heartbeat._thread
    assert second is not None
    assert second is not first
    begun[1].set()
    second.join(PATIENCE)
    assert len(begun) == 2
