"""What a crash has left is finished by others: lost messages, dead workers, deadlines."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest
import redis
from django.db import DatabaseError, OperationalError, connection, transaction
from django.db.models import F
from django.db.models.functions import Now
from pytest_django import Settings

from core import valkey
from core.actions import bus, registry, sweeper, worker
from core.actions.base import Settlement
from core.actions.bus import UNCLAIMED, enqueue, publish_task
from core.actions.registry import handles
from core.actions.sweeper import Sweeper, end_abandoned, publish_due
from core.actions.worker import run_task
from core.broker import messages
from core.broker.keeper import AGEING_MS
from core.broker.scripts import ROOT, Scripts
from core.models import Task, Tenant
from core.tenancy import tenant_scope
from tests.core.actions.conftest import EchoAction, NoteAction, NoteResult, Waiting, works
from tests.factories import claim, lose_worker, make_task, random_slug

pytestmark = pytest.mark.usefixtures("verbs")
PATIENCE = 20
FAILED = Task.Status.FAILED


class Killed(BaseException):
    """The process dies here: no handler of ours sees it."""


@pytest.fixture(autouse=True)
def handlers(verbs: None) -> None:
    handles(EchoAction)(lambda action: NoteResult(text=action.text))
    works(NoteAction)(lambda action, task: Settlement(Task.Status.COMPLETED, result={}))


Abandoned = Callable[[NoteAction, Task], Settlement]


def notes_leave(abandoned: Abandoned) -> None:
    """Dead attempts leave this from now on."""
    del registry._handlers["test.note"]
    works(NoteAction, abandoned=abandoned)(lambda action, task: Settlement(Task.Status.COMPLETED, result={}))


def enqueued(tenant: Tenant, *, callback: bool = False, **fields: Any) -> Task:
    """A note that waits, as its row says now."""
    with tenant_scope(tenant.pk):
        task = enqueue(
            NoteAction(),
            callback=(lambda task_id: EchoAction(task_id=task_id)) if callback else None,
            session_id="s",
            **fields,
        )
    return row_of(task)


def row_of(task: Task) -> Task:
    row: Task = Task.unscoped.get(pk=task.pk)
    return row


def callbacks_of(task: Task) -> list[Task]:
    return list(Task.unscoped.filter(action="test.echo", global_task_id=task.global_task_id))


def become_due(*tasks: Task) -> None:
    Task.unscoped.filter(pk__in=[task.pk for task in tasks]).update(due_at=Now())


def seconds_until(task: Task, moment: str) -> float:
    """Of the database's clock."""
    left = Task.unscoped.annotate(left=F(moment) - Now()).values_list("left", flat=True).get(pk=task.pk)
    return left.total_seconds()


def lease(task: Task, worker: str = "a-dead-worker") -> str:
    """The task's message as a worker has it; gives the delivery tag."""
    domain = task.queue.split(":")[0]
    scripts = Scripts(valkey.client())
    terms = [ROOT, domain, task.tenant_id, "0", worker, 60_000, AGEING_MS]
    leased = scripts.lease(args=terms)
    assert leased
    return str(leased[1].decode())


def running(tenant: Tenant) -> int:
    return int(valkey.client().hget(f"{ROOT}:orchestrator:running", tenant.pk) or 0)


def lose_broker_data() -> None:
    """As a Valkey that was restarted without its data."""
    client = valkey.client()
    keys = list(client.scan_iter(f"{ROOT}:*", count=1_000))
    assert keys
    client.delete(*keys)
    client.script_flush()


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """What they return; each runs in a thread and all begin together."""
    barrier = Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        barrier.wait(timeout=PATIENCE)
        try:
            return function()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(functions)) as threads:
        return list(threads.map(run, functions))


# Lost messages.


def test_a_message_that_waits_is_not_sent_again(committed_tenant: Tenant, waiting: Waiting) -> None:
    task = enqueued(committed_tenant)
    become_due(task)
    publish_due()
    assert len(waiting("orchestrator", task.pk)) == 1
    assert seconds_until(task, "due_at") > 0


def test_a_message_that_a_worker_has_is_not_sent_again(committed_tenant: Tenant, waiting: Waiting) -> None:
    task = enqueued(committed_tenant)
    tag = lease(task)
    become_due(task)
    publish_due()
    assert waiting("orchestrator", task.pk) == []
    Scripts(valkey.client()).settle(args=[ROOT, "a-dead-worker", tag, ""])
    become_due(task)
    publish_due()
    assert len(waiting("orchestrator", task.pk)) == 1


def test_a_message_that_waits_for_its_time_is_not_sent_again(
    committed_tenant: Tenant, waiting: Waiting
) -> None:
    task = make_task(committed_tenant, status="queued", queue=f"orchestrator:{committed_tenant.pk}:note:high")
    due = int(valkey.client().time()[0]) * 1000 + 600_000
    Scripts(valkey.client()).put(
        args=[ROOT, "orchestrator", task.tenant_id, task.queue, 0, "tag", str(task.pk), "{}", due]
    )
    become_due(task)
    publish_due()
    assert waiting("orchestrator", task.pk) == []
    Scripts(valkey.client()).purge(args=[ROOT, "orchestrator", task.tenant_id, task.queue])
    become_due(task)
    publish_due()
    assert len(waiting("orchestrator", task.pk)) == 1


@pytest.mark.parametrize("status", ["pending", "queued"])
def test_a_message_that_the_broker_does_not_have_is_sent(
    committed_tenant: Tenant, waiting: Waiting, status: str
) -> None:
    """Never sent: the process was killed after its commit, or the broker was away. Or lost."""
    queue = f"orchestrator:{committed_tenant.pk}:note:normal"
    task = make_task(committed_tenant, action="test.note", queue=queue, status=status)
    publish_due()
    [message] = waiting("orchestrator", task.pk)
    assert message["headers"]["task"] == "test.note"
    task = row_of(task)
    assert (task.status, task.attempt) == ("queued", 0)
    run_task(str(task.pk), task.tenant_id)
    assert row_of(task).status == "completed"


def test_what_is_not_due_is_left_to_its_publisher(committed_tenant: Tenant, waiting: Waiting) -> None:
    task = make_task(committed_tenant, due_at=Now() + datetime.timedelta(seconds=60))
    publish_due()
    assert waiting("agent", task.pk) == []
    assert row_of(task).status == "pending"


@pytest.mark.parametrize(
    "status", ["processing", "cancelling", "waiting", "completed", "failed", "cancelled"]
)
def test_only_what_can_be_claimed_is_sent(committed_tenant: Tenant, waiting: Waiting, status: str) -> None:
    task = make_task(committed_tenant, status=status)
    publish_due()
    assert waiting("agent", task.pk) == []


def test_of_a_serial_key_only_the_first_open_task_is_sent(committed_tenant: Tenant, waiting: Waiting) -> None:
    key, other = random_slug("key"), random_slug("key")
    make_task(committed_tenant, serial_key=key, status="completed")
    tasks = [make_task(committed_tenant, serial_key=key) for _ in range(3)]
    begun = [
        make_task(committed_tenant, serial_key=other, status=status) for status in ("processing", "queued")
    ]
    publish_due()
    sent = [task for task in (*tasks, *begun) if waiting("agent", task.pk)]
    assert sent == tasks[:1]
    claim(tasks[0]).settle("completed")
    become_due(*tasks)
    publish_due()
    assert [len(waiting("agent", task.pk)) for task in tasks] == [1, 1, 0]


def test_a_broker_that_has_lost_everything_gets_everything_again(
    committed_tenant: Tenant, waiting: Waiting
) -> None:
    key = random_slug("key")
    alone = [enqueued(committed_tenant) for _ in range(3)]
    line = [enqueued(committed_tenant, serial_key=key, behind=bool(at)) for at in range(3)]
    lose_broker_data()
    become_due(*alone, *line)
    publish_due()
    assert [len(waiting("orchestrator", task.pk)) for task in (*alone, *line)] == [1, 1, 1, 1, 0, 0]


def test_a_broker_that_is_away_is_asked_again_later(
    committed_tenant: Tenant,
    waiting: Waiting,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = make_task(committed_tenant)
    with monkeypatch.context() as away:
        nowhere = Scripts(redis.Redis.from_url("unix:///nonexistent/valkey.sock"))
        away.setattr(messages, "_scripts", lambda: nowhere)
        publish_due()
    assert "the broker is away" in caplog.text
    assert row_of(task).status == "pending"
    assert 0 < seconds_until(task, "due_at") <= UNCLAIMED.total_seconds()
    become_due(task)
    publish_due()
    assert len(waiting("agent", task.pk)) == 1


@pytest.mark.usefixtures("broker_away")
def test_a_broker_that_goes_between_question_and_message_costs_nothing(committed_tenant: Tenant) -> None:
    task = make_task(committed_tenant)
    publish_due()
    assert row_of(task).status == "pending"
    assert seconds_until(task, "due_at") > 0


def test_one_task_that_cannot_be_published_does_not_keep_the_others(
    committed_tenant: Tenant, waiting: Waiting
) -> None:
    odd = [make_task(committed_tenant, queue="nonsense") for _ in range(3)]
    task = make_task(committed_tenant)
    publish_due()
    assert len(waiting("agent", task.pk)) == 1
    assert {row_of(other).status for other in odd} == {"pending"}


@pytest.mark.parametrize(
    ("status", "age", "pause"),
    [("queued", 1, 3), ("queued", 12, 12), ("queued", 900, 30), ("pending", 900, 3)],
)
def test_a_message_that_was_there_is_looked_for_less_often(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch, status: str, age: int, pause: int
) -> None:
    monkeypatch.setattr(messages, "absent", lambda task_ids: set())
    created = Now() - datetime.timedelta(seconds=age)
    task = make_task(committed_tenant, status=status, created_at=created)
    publish_due()
    assert pause - 2 < seconds_until(task, "due_at") <= pause + 2


def test_a_backlog_does_not_keep_the_sweeper_from_what_has_ended(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait and are due again: a turn has an end, and begins with the dead."""
    monkeypatch.setattr(sweeper, "SLICE", 1)
    monkeypatch.setattr(sweeper, "_PAUSE", datetime.timedelta(0))
    monkeypatch.setattr(sweeper, "PUBLISH_SECONDS", 0.05)
    for _ in range(3):
        make_task(committed_tenant)
    dead = claim(make_task(committed_tenant))
    lose_worker(dead)
    patient = Sweeper()
    patient._patient_until = 0
    patient.sweep()
    assert row_of(dead).attempt == 2


# Dead workers.


def test_a_dead_workers_task_is_the_next_ones_with_growing_pauses_and_poison_at_the_fifth_crash(
    committed_tenant: Tenant,
) -> None:
    task = enqueued(committed_tenant, callback=True)
    for crashes, pause in enumerate((0, 2, 8, 30), 1):
        dead = claim(task)
        assert end_abandoned() == 0
        lose_worker(task)
        assert end_abandoned() == 1
        row = row_of(task)
        assert (row.status, row.attempt, row.crashes) == ("queued", crashes + 1, crashes)
        assert (row.lease_until, row.deadline, row.due_at) == (None, None, row.not_before)
        assert pause - 2 < seconds_until(task, "not_before") <= pause
        if pause:
            assert Task.claim(task.pk, task.tenant_id, 60) is None
            Task.unscoped.filter(pk=task.pk).update(not_before=Now())
        assert dead.settle("completed", result={}) is None
    claim(task)
    lose_worker(task)
    assert callbacks_of(task) == []
    assert end_abandoned() == 1
    row = row_of(task)
    assert (row.status, row.attempt, row.crashes, row.result) == ("failed", 5, 5, None)
    assert row.error["type"] == "Poison"
    assert row.finished_at is not None
    assert len(callbacks_of(task)) == 1
    assert end_abandoned() == 0


def test_hand_overs_do_not_poison(committed_tenant: Tenant) -> None:
    task = enqueued(committed_tenant)
    for _ in range(7):
        assert claim(task).give_back()
    claim(task)
    lose_worker(task)
    assert end_abandoned() == 1
    row = row_of(task)
    assert (row.status, row.attempt, row.crashes) == ("queued", 9, 1)


def test_the_dead_workers_slot_is_free_at_once(committed_tenant: Tenant, waiting: Waiting) -> None:
    task = enqueued(committed_tenant)
    lease(task)
    claim(task)
    assert running(committed_tenant) == 1
    lose_worker(task)
    end_abandoned()
    assert running(committed_tenant) == 0
    assert waiting("orchestrator", task.pk) == []
    publish_due()
    assert len(waiting("orchestrator", task.pk)) == 1


def test_nothing_is_raised_when_the_broker_is_away_at_a_take_over(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = enqueued(committed_tenant, callback=True)
    claim(task)
    lose_worker(task)
    nowhere = Scripts(redis.Redis.from_url("unix:///nonexistent/valkey.sock"))
    monkeypatch.setattr(messages, "_scripts", lambda: nowhere)
    assert end_abandoned() == 1
    assert (row_of(task).status, row_of(task).attempt) == ("queued", 2)


def test_what_the_dead_attempt_left_is_asked_for_and_written(committed_tenant: Tenant) -> None:
    asked: list[tuple[str, int]] = []
    written: list[str] = []

    def abandoned(action: NoteAction, task: Task) -> Settlement:
        asked.append((action.text, task.attempt))
        return Settlement(FAILED, result={"text": "so far"}, write=written.append)

    notes_leave(abandoned)
    task = enqueued(committed_tenant, callback=True)
    claim(task)
    lose_worker(task)
    end_abandoned()
    assert (asked, written) == ([("hello", 1)], ["queued"])
    claim(task)
    assert Task.ask_to_cancel(task.pk, "ada")
    lose_worker(task)
    assert end_abandoned() == 1
    row = row_of(task)
    assert (row.status, row.result, row.error) == ("cancelled", {"text": "so far"}, None)
    assert (row.cancelled_by, row.crashes) == ("ada", 2)
    assert written == ["queued", "cancelled"]
    assert len(callbacks_of(task)) == 1


def test_a_failed_run_has_no_result_whatever_it_has_said(committed_tenant: Tenant) -> None:
    notes_leave(lambda action, task: Settlement(FAILED, result={"text": "so far"}))
    task = enqueued(committed_tenant)
    claim(task)
    Task.unscoped.filter(pk=task.pk).update(deadline=Now())
    end_abandoned()
    row = row_of(task)
    assert (row.status, row.result, row.error["type"]) == ("failed", None, "DeadlineExceeded")


@pytest.mark.parametrize("trouble", ["an unknown action", "a payload of yesterday", "a handler that fails"])
def test_what_nobody_can_tell_is_nothing(committed_tenant: Tenant, trouble: str) -> None:
    def fails(action: NoteAction, task: Task) -> Settlement:
        raise LookupError

    task = enqueued(committed_tenant)
    if trouble == "an unknown action":
        Task.unscoped.filter(pk=task.pk).update(action="test.gone")
    elif trouble == "a payload of yesterday":
        Task.unscoped.filter(pk=task.pk).update(payload={"gone": 1})
    else:
        notes_leave(fails)
    claim(task)
    lose_worker(task)
    assert end_abandoned() == 1
    assert (row_of(task).status, row_of(task).attempt) == ("queued", 2)


def test_a_run_past_its_deadline_fails_though_its_worker_lives(
    committed_tenant: Tenant, waiting: Waiting
) -> None:
    task = enqueued(committed_tenant, callback=True)
    lease(task)
    held = claim(task)
    assert end_abandoned() == 0
    Task.unscoped.filter(pk=task.pk).update(deadline=Now())
    assert end_abandoned() == 1
    row = row_of(task)
    assert (row.status, row.crashes, row.error["type"]) == ("failed", 0, "DeadlineExceeded")
    assert len(callbacks_of(task)) == 1
    assert running(committed_tenant) == 0
    assert Task.renew([(held.pk, held.attempt)]) == {}
    assert held.settle("completed") is None


def test_a_cancelling_run_past_its_deadline_ends_cancelled(committed_tenant: Tenant) -> None:
    task = enqueued(committed_tenant)
    claim(task)
    assert Task.ask_to_cancel(task.pk, "ada")
    Task.unscoped.filter(pk=task.pk).update(deadline=Now())
    assert end_abandoned() == 1
    assert (row_of(task).status, row_of(task).error) == ("cancelled", None)


def test_the_next_of_the_key_follows_a_task_that_the_sweeper_ends(
    committed_tenant: Tenant, waiting: Waiting
) -> None:
    key = random_slug("key")
    first = enqueued(committed_tenant, serial_key=key)
    second = enqueued(committed_tenant, serial_key=key, behind=True)
    claim(first)
    assert Task.ask_to_cancel(first.pk, "ada")
    lose_worker(first)
    assert waiting("orchestrator", second.pk) == []
    end_abandoned()
    assert len(waiting("orchestrator", second.pk)) == 1


def test_a_living_worker_is_left_alone(committed_tenant: Tenant) -> None:
    task = claim(make_task(committed_tenant))
    before = row_of(task)
    assert end_abandoned() == 0
    assert row_of(task).lease_until == before.lease_until
    assert row_of(task).status == "processing"


def test_one_row_that_cannot_be_ended_does_not_keep_the_others(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SLICE", 2)
    broken = [enqueued(committed_tenant) for _ in range(4)]
    others = [enqueued(committed_tenant) for _ in range(3)]
    for task in (*broken, *others):
        claim(task)
        lose_worker(task)
    # Nobody can build this callback, so a cancelled one of these cannot be settled.
    Task.unscoped.filter(pk__in=[task.pk for task in broken]).update(
        callback={"action": "test.gone", "payload": {}}, status="cancelling"
    )
    end_abandoned()
    assert [row_of(task).attempt for task in others] == [2, 2, 2]
    assert {row_of(task).status for task in broken} == {"cancelling"}
    # They are tried again, and end once they can.
    Task.unscoped.filter(callback__action="test.gone").update(callback=None)
    for task in broken:
        lose_worker(task)
    end_abandoned()
    assert {row_of(task).status for task in broken} == {"cancelled"}


def test_two_sweepers_at_once_take_each_task_once(committed_tenant: Tenant) -> None:
    tasks = [enqueued(committed_tenant, callback=True) for _ in range(12)]
    for number, task in enumerate(tasks):
        claim(task)
        if number % 2:
            assert Task.ask_to_cancel(task.pk, "ada")
        lose_worker(task)

    def both() -> int:
        count = end_abandoned()
        publish_due()
        return count

    assert sum(at_once(both, both, both)) == len(tasks)
    rows = [row_of(task) for task in tasks]
    assert [(row.status, row.attempt, row.crashes) for row in rows] == [
        ("cancelled", 1, 1) if number % 2 else ("queued", 2, 1) for number in range(len(tasks))
    ]
    assert [len(callbacks_of(task)) for task in tasks] == [number % 2 for number in range(len(tasks))]


def test_one_sweeps_at_a_time(committed_tenant: Tenant) -> None:
    """A process that begins another sweep meanwhile finds nothing to do, and does not wait."""
    task, lost = claim(make_task(committed_tenant)), make_task(committed_tenant)
    lose_worker(task)

    def other() -> int:
        try:
            publish_due()
            return end_abandoned()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread, transaction.atomic():
        assert sweeper._looked_up(lambda: ["mine"]) == ["mine"]
        assert thread.submit(other).result(PATIENCE) == 0
    assert (row_of(task).status, row_of(lost).status) == ("processing", "pending")


def test_a_heartbeat_and_a_sweeper_never_both_win(committed_tenant: Tenant) -> None:
    for _ in range(15):
        task = claim(make_task(committed_tenant))
        lose_worker(task)
        renewed, taken = at_once(lambda task=task: Task.renew([(task.pk, 1)]), end_abandoned)
        row = row_of(task)
        if taken:
            assert (row.status, row.attempt, row.lease_until) == ("queued", 2, None)
            # It may have been renewed a moment before, never after.
            assert Task.renew([(task.pk, 1)]) == {}
        else:
            assert renewed == {task.pk: "processing"}
            assert (row.status, row.attempt) == ("processing", 1)
            assert seconds_until(task, "lease_until") > 0
        assert not (taken and renewed)


# Patience.


class Clock:
    """Monotonic time as the test wants it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(sweeper, "time", made)
    return made


@pytest.fixture
def dead(committed_tenant: Tenant) -> Task:
    task = claim(make_task(committed_tenant))
    lose_worker(task)
    return task


def turns(subject: Sweeper, clock: Clock, seconds: float) -> None:
    """The sweeper goes on, a turn a second."""
    for _ in range(int(seconds)):
        clock.now += 1
        subject.sweep()


def test_a_process_that_begins_lets_all_others_renew_first(dead: Task, clock: Clock) -> None:
    subject = Sweeper()
    turns(subject, clock, sweeper.PATIENCE_SECONDS - 1)
    assert row_of(dead).attempt == 1
    turns(subject, clock, 1)
    assert row_of(dead).attempt == 2


def test_a_process_that_stood_still_lets_all_others_renew_first(dead: Task, clock: Clock) -> None:
    subject = Sweeper()
    subject._patient_until = 0
    clock.now += 60
    subject.sweep()
    turns(subject, clock, sweeper.PATIENCE_SECONDS - 1)
    assert row_of(dead).attempt == 1
    turns(subject, clock, 1)
    assert row_of(dead).attempt == 2


@pytest.mark.parametrize("look", [publish_due, end_abandoned])
def test_a_database_that_stood_still_is_not_believed(
    dead: Task, clock: Clock, look: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen between question and answer: the leases that it calls expired could not be renewed."""
    find = sweeper._looked_up

    def slow(wanted: Callable[[], list[Any]]) -> list[Any]:
        def frozen() -> list[Any]:
            clock.now += 20
            return wanted()

        return find(frozen)

    monkeypatch.setattr(sweeper, "_looked_up", slow)
    with pytest.raises(OperationalError, match="stood still"):
        look()
    assert row_of(dead).attempt == 1


class Enough(BaseException):
    """Ends a loop that has no end."""


@pytest.fixture
def quick(settings: Settings) -> None:
    settings.WORKER_SLEEP_SECONDS = 0.01


def in_a_thread(function: Callable[[], Any]) -> None:
    """Until it has had enough."""

    def run() -> None:
        try:
            function()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread, pytest.raises(Enough):
        thread.submit(run).result(PATIENCE)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seconds", [2, 30])
def test_after_an_outage_of_the_database_all_may_renew_first(
    dead: Task, clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    taken_at: list[float] = []
    turn = Sweeper.sweep
    back_at = clock.now + seconds
    subject = Sweeper()
    subject._patient_until = 0

    def sweep(self: Sweeper) -> None:
        clock.now += 1
        if taken_at:
            raise Enough
        if clock.now < back_at:
            connection.ensure_connection()
            connection.connection.close()
        turn(self)
        if row_of(dead).attempt == 2:
            taken_at.append(clock.now)

    monkeypatch.setattr(Sweeper, "sweep", sweep)
    in_a_thread(subject.sweep_forever)
    assert taken_at[0] >= back_at - 1 + sweeper.PATIENCE_SECONDS


@pytest.mark.usefixtures("quick")
def test_the_sweeper_goes_on_whatever_happens(monkeypatch: pytest.MonkeyPatch, db: None) -> None:
    troubles: list[BaseException] = [
        Enough(),
        LookupError(),
        DatabaseError(),
        OperationalError(),
        redis.ConnectionError(),
    ]

    def sweep(self: Sweeper) -> None:
        raise troubles.pop()

    monkeypatch.setattr(Sweeper, "sweep", sweep)
    in_a_thread(Sweeper().sweep_forever)
    assert troubles == []


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("chores", sweeper.CHORE_SECONDS), ("leftovers", sweeper.LEFTOVER_SECONDS)],
)
def test_chores_have_their_turn_now_and_then(
    committed_tenant: Tenant, clock: Clock, monkeypatch: pytest.MonkeyPatch, kind: str, seconds: float
) -> None:
    done: list[float] = []
    monkeypatch.setattr(sweeper, kind, [lambda: done.append(clock.now)])
    subject = Sweeper()
    subject.sweep()
    clock.now += seconds
    subject.sweep()
    subject.sweep()
    assert len(done) == 1


# Killed between two steps.


def die(*args: Any, **kwargs: Any) -> Any:
    raise Killed


def test_killed_before_the_message_was_sent(
    committed_tenant: Tenant, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(bus, "publish_task", die)
        with pytest.raises(Killed):
            enqueued(committed_tenant)
    task = Task.unscoped.get()
    assert waiting("orchestrator", task.pk) == []
    become_due(task)
    publish_due()
    assert len(waiting("orchestrator", task.pk)) == 1


def test_killed_between_message_and_mark(
    committed_tenant: Tenant, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Task, "mark_queued", die)
        with pytest.raises(Killed):
            enqueued(committed_tenant)
    task = Task.unscoped.get()
    become_due(task)
    publish_due()
    assert (row_of(task).status, len(waiting("orchestrator", task.pk))) == ("pending", 1)
    run_task(str(task.pk), task.tenant_id)
    assert row_of(task).status == "completed"


@pytest.mark.parametrize("place", ["absent", "publish"])
def test_a_sweeper_killed_before_it_published(
    committed_tenant: Tenant, waiting: Waiting, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    task = make_task(committed_tenant)
    with monkeypatch.context() as patched:
        if place == "absent":
            patched.setattr(messages, "absent", die)
        else:
            patched.setattr(sweeper, "publish_task", die)
        with pytest.raises(Killed):
            publish_due()
    assert 0 < seconds_until(task, "due_at") <= UNCLAIMED.total_seconds()
    become_due(task)
    publish_due()
    assert len(waiting("agent", task.pk)) == 1


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("place", ["_left_of", "settle", "write"])
def test_a_sweeper_killed_before_its_commit_has_done_nothing(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch, place: str, cancelled: bool
) -> None:
    task = enqueued(committed_tenant, callback=True)
    claim(task)
    if cancelled:
        assert Task.ask_to_cancel(task.pk, "ada")
    lose_worker(task)
    before = Task.unscoped.filter(pk=task.pk).values().get()
    with monkeypatch.context() as patched:
        if place == "settle":
            patched.setattr(Task, "settle" if cancelled else "give_back", die)
        elif place == "write":
            left = Settlement(FAILED, write=die)
            patched.setattr(sweeper, "_left_of", lambda task: left)
        else:
            patched.setattr(sweeper, place, die)
        with pytest.raises(Killed):
            end_abandoned()
    assert Task.unscoped.filter(pk=task.pk).values().get() == before
    assert callbacks_of(task) == []
    assert end_abandoned() == 1
    row = row_of(task)
    assert (row.status, row.crashes) == ("cancelled" if cancelled else "queued", 1)
    assert len(callbacks_of(task)) == cancelled


def test_a_sweeper_killed_after_its_commit(
    committed_tenant: Tenant, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is still the dead worker's: it comes back when the transport's lease has run out."""
    task = enqueued(committed_tenant)
    lease(task)
    claim(task)
    lose_worker(task)
    with monkeypatch.context() as patched:
        patched.setattr(sweeper, "_drop", die)
        with pytest.raises(Killed):
            end_abandoned()
    assert (row_of(task).status, row_of(task).attempt) == ("queued", 2)
    publish_due()
    assert waiting("orchestrator", task.pk) == []
    valkey.client().zadd(f"{ROOT}:workers", {"a-dead-worker": 1})
    assert Scripts(valkey.client()).reap(args=[ROOT, 100])
    assert len(waiting("orchestrator", task.pk)) == 1
    run_task(str(task.pk), task.tenant_id)
    assert (row_of(task).status, row_of(task).attempt) == ("completed", 2)


@pytest.mark.parametrize("place", ["build", "enqueue", "publish_next", "announce"])
def test_a_worker_killed_while_it_settles(
    committed_tenant: Tenant, waiting: Waiting, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Before the commit another worker does it again; after it the callback and the next task wait."""
    key = random_slug("key")
    task = enqueued(committed_tenant, callback=True, serial_key=key)
    following = enqueued(committed_tenant, serial_key=key, behind=True)
    with monkeypatch.context() as patched:
        if place == "announce":
            end = Settlement(Task.Status.COMPLETED, result={}, announce=die)
            patched.setattr(worker, "_run", lambda task: end)
        elif place == "build":
            patched.setattr(worker, "follow_up", die)
        else:
            patched.setattr(worker, place, die)
        with pytest.raises(Killed):
            run_task(str(task.pk), task.tenant_id)
    committed = place in ("publish_next", "announce")
    assert row_of(task).status == ("completed" if committed else "processing")
    if not committed:
        assert callbacks_of(task) == []
        lose_worker(task)
        assert end_abandoned() == 1
        run_task(str(task.pk), task.tenant_id)
    [callback] = callbacks_of(task)
    become_due(callback, following)
    publish_due()
    assert row_of(task).status == "completed"
    assert len(waiting("orchestrator", callback.pk)) == 1
    assert len(waiting("orchestrator", following.pk)) == 1


# Fences.


def test_a_run_that_was_taken_over_writes_and_announces_nothing(committed_tenant: Tenant) -> None:
    told: list[str] = []
    taken = Event()

    def note(action: NoteAction, task: Task) -> Settlement:
        if task.attempt == 1:
            lose_worker(task)
            assert end_abandoned() == 1
            claim(task)
            taken.set()
        return Settlement(Task.Status.COMPLETED, result={}, write=told.append, announce=told.append)

    del registry._handlers["test.note"]
    works(NoteAction)(note)
    task = enqueued(committed_tenant, callback=True)
    run_task(str(task.pk), task.tenant_id)
    assert taken.is_set()
    row = row_of(task)
    assert (row.status, row.attempt, row.result, told) == ("processing", 2, None, [])
    assert callbacks_of(task) == []


def test_every_message_twice_has_no_effect(committed_tenant: Tenant, waiting: Waiting) -> None:
    task = enqueued(committed_tenant, callback=True)
    publish_task(task)
    publish_task(task)
    assert len(waiting("orchestrator", task.pk)) == 3
    for _ in range(3):
        run_task(str(task.pk), task.tenant_id)
    assert (row_of(task).status, row_of(task).attempt) == ("completed", 1)
    assert len(callbacks_of(task)) == 1
