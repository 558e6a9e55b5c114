"""The life of a task: every arrow of the machine, and no other."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.actions import sweeper
from core.ids import uuid7
from core.leases import LEASE_SECONDS
from core.models import Task, Tenant
from core.models.task import FINAL, TaskStatus
from tests.factories import claim, lose_worker, make_task, make_tenant, random_slug

LEASE = datetime.timedelta(seconds=LEASE_SECONDS)
Move = Callable[[Task], Any]

# Each method with its arrows {from: to}; from anywhere else it does nothing.
MOVES: dict[str, tuple[Move, dict[str, str]]] = {
    "mark_queued": (lambda task: Task.mark_queued(task.pk), {"pending": "queued"}),
    "claim": (
        lambda task: Task.claim(task.pk, task.tenant_id, 60),
        {"pending": "processing", "queued": "processing"},
    ),
    "cancel_unstarted": (
        lambda task: Task.cancel_unstarted(task.pk, "ada"),
        {"pending": "cancelled", "queued": "cancelled", "waiting": "cancelled"},
    ),
    "ask_to_cancel": (lambda task: Task.ask_to_cancel(task.pk, "ada"), {"processing": "cancelling"}),
    "give_back": (lambda task: task.give_back(), {"processing": "queued"}),
    "settle as completed": (
        lambda task: task.settle("completed", result={}),
        {"processing": "completed", "cancelling": "cancelled"},
    ),
    "settle as failed": (
        lambda task: task.settle("failed", error={}),
        {"processing": "failed", "cancelling": "cancelled"},
    ),
}


def row_of(task: Task) -> dict[str, Any]:
    row: dict[str, Any] = Task.unscoped.filter(pk=task.pk).values().get()
    return row


@pytest.mark.parametrize("status", TaskStatus.values)
@pytest.mark.parametrize("move", MOVES)
def test_a_move_follows_its_arrows_and_no_other(tenant: Tenant, move: str, status: str) -> None:
    task = make_task(tenant, status=status, attempt=1)
    before = row_of(task)
    act, arrows = MOVES[move]
    moved = act(task)
    if status in arrows:
        assert moved
        assert row_of(task)["status"] == arrows[status]
    else:
        assert not moved
        assert row_of(task) == before


def test_the_docstring_tells_exactly_these_arrows() -> None:
    told = set()
    for line in (Task.__doc__ or "").splitlines():
        if match := re.match(r"\s*([a-z, ]+) → ([a-z, ]+?)\s+`(\w+)`", line):
            origins, ends, method = match.groups()
            told |= {(a.strip(), b.strip(), method) for a in origins.split(",") for b in ends.split(",")}
    tested = {
        (origin, end, move.split()[0])
        for move, (_, arrows) in MOVES.items()
        for origin, end in arrows.items()
    }
    assert told == tested


def test_a_claim_starts_an_attempt_and_the_clock(tenant: Tenant) -> None:
    task = make_task(tenant)
    claimed = Task.claim(task.pk, tenant.pk, 60)
    assert claimed is not None
    assert (claimed.pk, claimed.tenant_id, claimed.status, claimed.attempt) == (
        task.pk,
        tenant.pk,
        "processing",
        1,
    )
    row = row_of(task)
    assert claimed.started_at == row["started_at"] is not None
    assert claimed.lease_until == row["lease_until"] == claimed.started_at + LEASE
    assert claimed.deadline == row["deadline"] == claimed.started_at + datetime.timedelta(seconds=60)
    assert (claimed.payload, claimed.queue) == (task.payload, task.queue)


def test_another_tenant_claims_nothing(tenant: Tenant) -> None:
    task = make_task(tenant)
    before = row_of(task)
    assert Task.claim(task.pk, make_tenant().pk, 60) is None
    assert Task.claim(task.pk, "", 60) is None
    assert row_of(task) == before


def test_unknown_tasks_move_nowhere(db: None) -> None:
    assert not Task.mark_queued(uuid7())
    assert Task.claim(uuid7(), "demo", 60) is None
    assert not Task.cancel_unstarted(uuid7(), "ada")
    assert not Task.ask_to_cancel(uuid7(), "ada")


def test_a_move_touches_no_other_row(tenant: Tenant) -> None:
    task, other = make_task(tenant), make_task(tenant)
    before = row_of(other)
    Task.mark_queued(task.pk)
    claimed = Task.claim(task.pk, tenant.pk, 60)
    assert claimed is not None
    claimed.settle("completed", result={})
    assert row_of(other) == before


def test_an_older_attempt_settles_nothing(tenant: Tenant) -> None:
    task = make_task(tenant)
    slow = Task.claim(task.pk, tenant.pk, 60)
    assert slow is not None
    assert Task.unscoped.get(pk=task.pk).give_back(crashed=True)  # taken from a worker that seemed dead
    quick = Task.claim(task.pk, tenant.pk, 60)
    assert quick is not None
    assert (slow.attempt, quick.attempt) == (1, 2)
    before = row_of(task)
    assert slow.settle("completed", result={"text": "late"}) is None
    assert not slow.give_back()
    assert Task.renew([(slow.pk, slow.attempt)]) == {}
    assert row_of(task) == before
    Task.ask_to_cancel(task.pk, "ada")
    assert slow.settle("failed", error={}) is None
    assert row_of(task)["status"] == "cancelling"
    assert quick.settle("completed", result={"text": "mine"}) == "cancelled"
    assert row_of(task)["result"] == {"text": "mine"}


def test_a_settled_task_keeps_what_it_came_to(tenant: Tenant) -> None:
    task = Task.claim(make_task(tenant).pk, tenant.pk, 60)
    assert task is not None
    assert task.settle("completed", result={"text": "done"}) == "completed"
    assert task.settle("failed", error={"type": "Late"}) is None
    row = row_of(task)
    assert (row["status"], row["result"], row["error"]) == ("completed", {"text": "done"}, None)
    assert row["finished_at"] >= row["started_at"]


def test_a_cancelling_task_ends_cancelled_with_its_text_and_without_an_error(tenant: Tenant) -> None:
    task = Task.claim(make_task(tenant).pk, tenant.pk, 60)
    assert task is not None
    Task.ask_to_cancel(task.pk, "ada")
    assert task.settle("failed", result={"text": "so far"}, error={"type": "X"}) == "cancelled"
    row = row_of(task)
    assert (row["result"], row["error"], row["cancelled_by"]) == ({"text": "so far"}, None, "ada")
    assert row["cancelled_at"] is not None


def test_who_cancelled_a_waiting_task_and_when(tenant: Tenant) -> None:
    task = make_task(tenant)
    Task.cancel_unstarted(task.pk, "ada")
    row = row_of(task)
    assert row["cancelled_by"] == "ada"
    assert row["cancelled_at"] == row["finished_at"] is not None


def test_the_database_knows_no_other_status(tenant: Tenant) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        make_task(tenant, status="paused")
    with pytest.raises(IntegrityError), transaction.atomic():
        make_task(tenant, priority=10)


@pytest.mark.parametrize("rivals", [8])
def test_rivals_for_a_claim_have_one_winner(committed_tenant: Tenant, rivals: int) -> None:
    tasks = [make_task(committed_tenant) for _ in range(10)]
    barrier = Barrier(rivals)

    def claim_all(_: int) -> list[bool]:
        try:
            won = []
            for task in tasks:
                barrier.wait(timeout=30)
                won.append(Task.claim(task.pk, committed_tenant.pk, 60) is not None)
            return won
        finally:
            connection.close()

    with ThreadPoolExecutor(rivals) as threads:
        results = list(threads.map(claim_all, range(rivals)))
    for task, winners in zip(tasks, zip(*results, strict=True), strict=True):
        assert sum(winners) == 1
        assert row_of(task)["attempt"] == 1


def test_a_hand_over_and_a_crash_begin_another_attempt(tenant: Tenant) -> None:
    first = claim(make_task(tenant))
    assert first.give_back()
    row = row_of(first)
    assert (row["status"], row["attempt"], row["crashes"]) == ("queued", 2, 0)
    assert (row["lease_until"], row["deadline"]) == (None, None)
    second = claim(first)
    assert (second.attempt, second.crashes) == (2, 0)
    assert second.give_back(crashed=True)
    third = claim(second)
    assert (third.attempt, third.crashes) == (3, 1)
    assert third.settle("failed", error={}, crashed=True) == "failed"
    assert row_of(third)["crashes"] == 2


def test_nobody_claims_a_task_before_its_time(tenant: Tenant) -> None:
    first = claim(make_task(tenant))
    assert first.give_back(crashed=True, seconds=30)
    row = row_of(first)
    assert row["not_before"] == row["due_at"]
    # The clock is the database's.
    [(wait,)] = ask("SELECT not_before - statement_timestamp() FROM core_task WHERE id = %s", first.pk)
    assert datetime.timedelta(seconds=25) < wait <= datetime.timedelta(seconds=30)
    assert Task.claim(first.pk, tenant.pk, 60) is None
    assert row_of(first) == row
    Task.unscoped.filter(pk=first.pk).update(not_before=Now())
    assert claim(first).attempt == 2


def test_a_renewal_prolongs_what_is_ours_and_tells_who_is_to_stop(tenant: Tenant) -> None:
    mine, stopping, lost, ended = (claim(make_task(tenant)) for _ in range(4))
    queued = make_task(tenant, status="queued", attempt=1)
    assert Task.ask_to_cancel(stopping.pk, "ada")
    assert lost.give_back()
    claim(lost)
    assert ended.settle("completed") == "completed"
    foreign = row_of(lost)
    for task in (mine, stopping):
        lose_worker(task)
    held = [(task.pk, task.attempt) for task in (mine, stopping, lost, ended, queued)]
    assert Task.renew(held) == {mine.pk: "processing", stopping.pk: "cancelling"}
    for task in (mine, stopping):
        [(left,)] = ask("SELECT lease_until - statement_timestamp() FROM core_task WHERE id = %s", task.pk)
        assert datetime.timedelta(0) < left <= LEASE
    assert row_of(lost) == foreign
    assert Task.renew([]) == {}


def ask(query: str, *values: object) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return list(cursor.fetchall())


def chain(tenant: Tenant, length: int) -> list[Task]:
    """Tasks of one serial key, in order."""
    key = random_slug("key")
    return [make_task(tenant, serial_key=key) for _ in range(length)]


@pytest.mark.parametrize("open_status", ["pending", "queued", "processing", "waiting", "cancelling"])
def test_nobody_claims_a_task_while_an_earlier_one_of_its_key_is_open(
    tenant: Tenant, open_status: str
) -> None:
    first, second, third = chain(tenant, 3)
    [other, alone] = [make_task(tenant, serial_key=random_slug("key")), make_task(tenant)]
    Task.unscoped.filter(pk=first.pk).update(status=open_status)
    for task in (second, third):
        before = row_of(task)
        assert Task.claim(task.pk, tenant.pk, 60) is None
        assert row_of(task) == before
    assert [task.pk for task in Task.open_of(first.serial_key)] == [first.pk, second.pk, third.pk]
    claim(other)
    claim(alone)


@pytest.mark.parametrize("end", FINAL)
def test_an_ended_task_makes_way(tenant: Tenant, end: str) -> None:
    first, second, third = chain(tenant, 3)
    Task.unscoped.filter(pk=first.pk).update(status=end)
    assert Task.claim(third.pk, tenant.pk, 60) is None
    claim(second)
    assert [task.pk for task in Task.open_of(first.serial_key)] == [second.pk, third.pk]


def test_tasks_without_a_key_wait_for_nobody(tenant: Tenant) -> None:
    for task in [make_task(tenant) for _ in range(3)][::-1]:
        claim(task)
    assert list(Task.open_of("")) == []


def test_the_first_of_a_key_is_told_from_the_others(tenant: Tenant) -> None:
    ended, first, second = chain(tenant, 3)
    Task.unscoped.filter(pk=ended.pk).update(status="failed")
    alone = make_task(tenant)
    rows = Task.unscoped.annotate(is_first=Task.is_first_of_its_key()).exclude(pk=ended.pk)
    assert dict(rows.values_list("pk", "is_first")) == {first.pk: True, second.pk: False, alone.pk: True}


T = TypeVar("T")


def elsewhere(function: Callable[[], T]) -> Callable[[], T]:
    """For a thread: with a database connection of its own, closed at the end."""

    def run() -> T:
        try:
            return function()
        finally:
            connection.close()

    return run


def at_once(*functions: Callable[[], T]) -> list[T]:
    """What they return; each runs in a thread and all begin together."""
    barrier = Barrier(len(functions))

    def run(function: Callable[[], T]) -> T:
        barrier.wait(timeout=30)
        return elsewhere(function)()

    with ThreadPoolExecutor(len(functions)) as threads:
        return list(threads.map(run, functions))


def is_waited_for(lock_type: str) -> bool:
    """Whether some session waits for a lock of that type."""
    return bool(ask("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = %s", lock_type))


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


def test_whoever_lines_up_second_waits_for_the_firsts_commit_and_sees_its_task(
    committed_tenant: Tenant,
) -> None:
    """So the order of ordinals is the order of commits."""
    key = random_slug("key")

    def second() -> tuple[list[Any], Task]:
        with transaction.atomic():
            line = [task.pk for task in Task.line_up(key)]
            return line, make_task(committed_tenant, serial_key=key)

    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            assert Task.line_up(key) == []
            waiting = threads.submit(elsewhere(second))
            eventually(lambda: is_waited_for("advisory"))
            first = make_task(committed_tenant, serial_key=key)
        line, task = waiting.result(timeout=30)
    assert line == [first.pk]
    assert row_of(first)["ordinal"] < row_of(task)["ordinal"]
    assert Task.claim(task.pk, committed_tenant.pk, 60) is None


def test_without_the_line_an_earlier_task_appears_when_a_later_one_runs(committed_tenant: Tenant) -> None:
    """Why `line_up` locks: the first transaction takes its ordinal, the second one commits before it."""
    key = random_slug("key")

    def second() -> Task:
        return claim(make_task(committed_tenant, serial_key=key))

    with ThreadPoolExecutor(1) as threads, transaction.atomic():
        first = make_task(committed_tenant, serial_key=key)
        later = threads.submit(elsewhere(second)).result(timeout=30)
    assert row_of(first)["ordinal"] < row_of(later)["ordinal"]
    assert (row_of(first)["status"], row_of(later)["status"]) == ("pending", "processing")


def test_many_who_line_up_at_once_stand_in_the_order_of_their_commits(committed_tenant: Tenant) -> None:
    key = random_slug("key")

    def join() -> list[tuple[int, Any]]:
        seen = []
        for _ in range(8):
            with transaction.atomic():
                before = len(Task.line_up(key))
                seen.append((before, make_task(committed_tenant, serial_key=key).pk))
        return seen

    seen = [place for places in at_once(*[join] * 4) for place in places]
    # Each saw exactly those before it.
    assert [pk for _, pk in sorted(seen)] == [task.pk for task in Task.open_of(key)]
    assert sorted(place for place, _ in seen) == list(range(32))


def test_other_keys_do_not_wait(committed_tenant: Tenant) -> None:
    with ThreadPoolExecutor(1) as threads, transaction.atomic():
        Task.line_up(random_slug("key"))
        other = elsewhere(lambda: transaction.atomic()(Task.line_up)(random_slug("key")))
        assert threads.submit(other).result(timeout=30) == []


def test_rivals_who_take_a_task_from_its_worker_have_one_winner(committed_tenant: Tenant) -> None:
    for _ in range(10):
        task = claim(make_task(committed_tenant))
        rivals = [Task.unscoped.get(pk=task.pk) for _ in range(4)]
        won = at_once(
            *[lambda rival=rival: rival.give_back(crashed=True) for rival in rivals],
            lambda task=task: task.settle("completed") == "completed",
        )
        assert sum(won) == 1
        row = row_of(task)
        settled = won[-1]
        assert (row["status"], row["attempt"], row["crashes"]) == (
            ("completed", 1, 0) if settled else ("queued", 2, 1)
        )


def test_a_renewal_that_meets_a_take_over_waits_and_finds_that_it_is_too_late(
    committed_tenant: Tenant,
) -> None:
    task, other = claim(make_task(committed_tenant)), claim(make_task(committed_tenant))
    held = [(task.pk, task.attempt), (other.pk, other.attempt)]
    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            Task.unscoped.select_for_update().get(pk=task.pk)
            renewal = threads.submit(elsewhere(lambda: Task.renew(held)))
            eventually(lambda: is_waited_for("transactionid"))
            assert task.give_back(crashed=True)
        assert renewal.result(timeout=30) == {other.pk: "processing"}
    assert row_of(task)["lease_until"] is None


WORKERS = st.sampled_from(["one", "two", "three"])


class Model:
    """What one row should say."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.status = "pending"
        self.attempt = 0
        self.crashes = 0
        self.expired = False
        self.ends: list[str] = []

    @property
    def is_open(self) -> bool:
        return self.status not in FINAL

    @property
    def runs(self) -> bool:
        return self.status in ("processing", "cancelling")

    def end(self, status: str) -> None:
        self.status = status
        self.ends.append(status)


class LivesOfTasks(RuleBasedStateMachine):
    """Whatever workers, callers and sweepers try, in whatever order, rows do what their models do."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.tenant = make_tenant()
        self.key = random_slug("key")
        self.models = [Model(self.make(self.key)) for _ in range(3)] + [Model(self.make(""))]
        # What each worker believes to have: (which task, the row as it was claimed).
        self.held: dict[str, dict[int, Task]] = {"one": {}, "two": {}, "three": {}}

    def make(self, serial_key: str) -> Task:
        payload = {"task_id": str(uuid7())}
        return make_task(self.tenant, serial_key=serial_key, action="task.cancel", payload=payload)

    def pick(self, number: int) -> Model:
        type(self).steps += 1
        return self.models[number % len(self.models)]

    def is_first(self, model: Model) -> bool:
        if not model.task.serial_key:
            return True
        earlier = self.models[: self.models.index(model)]
        return not any(other.is_open and other.task.serial_key for other in earlier)

    @rule(number=st.integers(0, 9))
    def mark_queued(self, number: int) -> None:
        model = self.pick(number)
        assert Task.mark_queued(model.task.pk) == (model.status == "pending")
        if model.status == "pending":
            model.status = "queued"

    @rule(worker=WORKERS, number=st.integers(0, 9))
    def claim(self, worker: str, number: int) -> None:
        model = self.pick(number)
        assert Task.claim(model.task.pk, "somebody-else", 60) is None
        claimed = Task.claim(model.task.pk, self.tenant.pk, 60)
        assert (claimed is not None) == (model.status in ("pending", "queued") and self.is_first(model))
        if claimed is not None:
            model.status, model.expired = "processing", False
            model.attempt = max(model.attempt, 1)
            assert claimed.attempt == model.attempt
            owners = [held for held in self.held.values() if model.task.pk in held]
            assert claimed.attempt not in [held[model.task.pk].attempt for held in owners]
            self.held[worker][model.task.pk] = claimed

    @rule(worker=WORKERS)
    def beat(self, worker: str) -> None:
        type(self).steps += 1
        held = self.held[worker]
        ours = {}
        for model in self.models:
            task = held.get(model.task.pk)
            if task is not None and model.runs and task.attempt == model.attempt:
                ours[task.pk] = model.status
                model.expired = False
        assert Task.renew((task.pk, task.attempt) for task in held.values()) == ours
        self.held[worker] = {pk: task for pk, task in held.items() if pk in ours}

    @rule(number=st.integers(0, 9))
    def run_out_of_lease(self, number: int) -> None:
        model = self.pick(number)
        if model.runs:
            lose_worker(model.task)
            model.expired = True

    @rule()
    def sweep(self) -> None:
        type(self).steps += 1
        sweeper.end_abandoned()
        for model in self.models:
            if not (model.runs and model.expired):
                continue
            model.crashes += 1
            if model.status == "cancelling":
                model.end("cancelled")
            elif model.crashes == sweeper.MOST_CRASHES:
                model.end("failed")
            else:
                model.status = "queued"
                model.attempt += 1
        # As if the pause before the next attempt were over.
        Task.unscoped.filter(tenant=self.tenant).update(not_before=None)

    @rule(number=st.integers(0, 9))
    def cancel_unstarted(self, number: int) -> None:
        model = self.pick(number)
        could = model.status in ("pending", "queued", "waiting")
        assert Task.cancel_unstarted(model.task.pk, "ada") == could
        if could:
            model.end("cancelled")

    @rule(number=st.integers(0, 9))
    def ask_to_cancel(self, number: int) -> None:
        model = self.pick(number)
        assert Task.ask_to_cancel(model.task.pk, "ada") == (model.status == "processing")
        if model.status == "processing":
            model.status = "cancelling"

    def own(self, worker: str, number: int) -> tuple[Model, Task | None, bool]:
        model = self.pick(number)
        task = self.held[worker].pop(model.task.pk, None)
        return model, task, task is not None and task.attempt == model.attempt

    @rule(worker=WORKERS, number=st.integers(0, 9), status=st.sampled_from(["completed", "failed"]))
    def settle(self, worker: str, number: int, status: str) -> None:
        model, task, is_ours = self.own(worker, number)
        if task is None:
            return
        expected = None
        if is_ours and model.runs:
            expected = "cancelled" if model.status == "cancelling" else status
        assert task.settle(status) == expected
        if expected is not None:
            model.end(expected)

    @rule(worker=WORKERS, number=st.integers(0, 9))
    def hand_over(self, worker: str, number: int) -> None:
        model, task, is_ours = self.own(worker, number)
        if task is None:
            return
        could = is_ours and model.status == "processing"
        assert task.give_back() == could
        if could:
            model.status = "queued"
            model.attempt += 1

    @precondition(lambda self: len(self.models) < 8)
    @rule(number=st.integers(0, 9))
    def retry(self, number: int) -> None:
        model = self.pick(number)
        if model.is_open:
            return
        key = model.task.serial_key
        with transaction.atomic():
            if key:
                Task.line_up(key)
            self.models.append(Model(self.make(key)))

    @invariant()
    def rows_are_as_their_models(self) -> None:
        rows = {row["id"]: row for row in Task.unscoped.filter(tenant=self.tenant).values()}
        assert len(rows) == len(self.models)
        for model in self.models:
            row = rows[model.task.pk]
            assert (row["status"], row["attempt"], row["crashes"]) == (
                model.status,
                model.attempt,
                model.crashes,
            )
            assert len(model.ends) == (not model.is_open)
            assert (row["finished_at"] is not None) == bool(model.ends)
            # Whoever has the attempt is one worker, as far as it goes on.
            if model.runs:
                owners = [
                    worker
                    for worker, held in self.held.items()
                    if model.task.pk in held and held[model.task.pk].attempt == model.attempt
                ]
                assert len(owners) <= 1

    @invariant()
    def a_key_runs_in_order(self) -> None:
        statuses = [task.status for task in Task.open_of(self.key)]
        assert not {"processing", "cancelling"} & set(statuses[1:])


STEPS = 10_000


def test_any_history_of_tasks_follows_the_model(db: None) -> None:
    LivesOfTasks.steps = 0
    settings = hypothesis_settings(max_examples=200, stateful_step_count=60)
    run_state_machine_as_test(LivesOfTasks, settings=settings)
    assert LivesOfTasks.steps >= STEPS


@pytest.mark.parametrize("status", sorted(set(TaskStatus.values) - {"completed", "failed"}))
def test_a_run_ends_completed_or_failed_and_not_otherwise(tenant: Tenant, status: str) -> None:
    task = Task.claim(make_task(tenant).pk, tenant.pk, 60)
    assert task is not None
    before = row_of(task)
    with pytest.raises(ValueError, match="completed or failed"):
        task.settle(status)
    assert row_of(task) == before
