"""The life of a task: every arrow of the machine, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.ids import uuid7
from core.models import Task, Tenant
from core.models.task import FINAL, TaskStatus
from tests.factories import make_task, make_tenant

Move = Callable[[Task], Any]

# Each method with its arrows {from: to}; from anywhere else it does nothing.
MOVES: dict[str, tuple[Move, dict[str, str]]] = {
    "mark_queued": (lambda task: Task.mark_queued(task.pk), {"pending": "queued"}),
    "claim": (
        lambda task: Task.claim(task.pk, task.tenant_id),
        {"pending": "processing", "queued": "processing"},
    ),
    "cancel_unstarted": (
        lambda task: Task.cancel_unstarted(task.pk, "ada"),
        {"pending": "cancelled", "queued": "cancelled", "waiting": "cancelled"},
    ),
    "ask_to_cancel": (lambda task: Task.ask_to_cancel(task.pk, "ada"), {"processing": "cancelling"}),
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
    claimed = Task.claim(task.pk, tenant.pk)
    assert claimed is not None
    assert (claimed.pk, claimed.tenant_id, claimed.status, claimed.attempt) == (
        task.pk,
        tenant.pk,
        "processing",
        1,
    )
    row = row_of(task)
    assert claimed.started_at == row["started_at"] is not None
    assert (claimed.payload, claimed.queue) == (task.payload, task.queue)


def test_another_tenant_claims_nothing(tenant: Tenant) -> None:
    task = make_task(tenant)
    before = row_of(task)
    assert Task.claim(task.pk, make_tenant().pk) is None
    assert Task.claim(task.pk, "") is None
    assert row_of(task) == before


def test_unknown_tasks_move_nowhere(db: None) -> None:
    assert not Task.mark_queued(uuid7())
    assert Task.claim(uuid7(), "demo") is None
    assert not Task.cancel_unstarted(uuid7(), "ada")
    assert not Task.ask_to_cancel(uuid7(), "ada")


def test_a_move_touches_no_other_row(tenant: Tenant) -> None:
    task, other = make_task(tenant), make_task(tenant)
    before = row_of(other)
    Task.mark_queued(task.pk)
    claimed = Task.claim(task.pk, tenant.pk)
    assert claimed is not None
    claimed.settle("completed", result={})
    assert row_of(other) == before


def test_an_older_attempt_settles_nothing(tenant: Tenant) -> None:
    task = make_task(tenant)
    slow = Task.claim(task.pk, tenant.pk)
    Task.unscoped.filter(pk=task.pk).update(status="queued")  # taken over from a worker that seemed dead
    quick = Task.claim(task.pk, tenant.pk)
    assert slow is not None
    assert quick is not None
    assert (slow.attempt, quick.attempt) == (1, 2)
    before = row_of(task)
    assert slow.settle("completed", result={"text": "late"}) is None
    assert row_of(task) == before
    Task.ask_to_cancel(task.pk, "ada")
    assert slow.settle("failed", error={}) is None
    assert row_of(task)["status"] == "cancelling"
    assert quick.settle("completed", result={"text": "mine"}) == "cancelled"
    assert row_of(task)["result"] == {"text": "mine"}


def test_a_settled_task_keeps_what_it_came_to(tenant: Tenant) -> None:
    task = Task.claim(make_task(tenant).pk, tenant.pk)
    assert task is not None
    assert task.settle("completed", result={"text": "done"}) == "completed"
    assert task.settle("failed", error={"type": "Late"}) is None
    row = row_of(task)
    assert (row["status"], row["result"], row["error"]) == ("completed", {"text": "done"}, None)
    assert row["finished_at"] >= row["started_at"]


def test_a_cancelling_task_ends_cancelled_with_its_text_and_without_an_error(tenant: Tenant) -> None:
    task = Task.claim(make_task(tenant).pk, tenant.pk)
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
                won.append(Task.claim(task.pk, committed_tenant.pk) is not None)
            return won
        finally:
            connection.close()

    with ThreadPoolExecutor(rivals) as threads:
        results = list(threads.map(claim_all, range(rivals)))
    for task, winners in zip(tasks, zip(*results, strict=True), strict=True):
        assert sum(winners) == 1
        assert row_of(task)["attempt"] == 1


WORKERS = st.sampled_from(["one", "two", "three"])


class LifeOfATask(RuleBasedStateMachine):
    """Whatever several workers and callers try, in whatever order, the row does what the model does."""

    def __init__(self) -> None:
        super().__init__()
        self.tenant = make_tenant()
        self.task = make_task(self.tenant)
        self.status = "pending"
        self.attempt = 0
        self.held: dict[str, Task] = {}
        self.ends: list[str] = []

    def _enter(self, status: str) -> None:
        self.status = status
        if status in FINAL:
            self.ends.append(status)

    @rule()
    def mark_queued(self) -> None:
        assert Task.mark_queued(self.task.pk) == (self.status == "pending")
        if self.status == "pending":
            self._enter("queued")

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        claimed = Task.claim(self.task.pk, self.tenant.pk)
        assert (claimed is not None) == (self.status in ("pending", "queued"))
        if claimed is not None:
            self.attempt += 1
            assert claimed.attempt == self.attempt
            self.held[worker] = claimed
            self._enter("processing")

    @rule()
    def claim_for_another_tenant(self) -> None:
        assert Task.claim(self.task.pk, "somebody-else") is None

    @rule()
    def cancel_unstarted(self) -> None:
        could = self.status in ("pending", "queued", "waiting")
        assert Task.cancel_unstarted(self.task.pk, "ada") == could
        if could:
            self._enter("cancelled")

    @rule()
    def ask_to_cancel(self) -> None:
        assert Task.ask_to_cancel(self.task.pk, "ada") == (self.status == "processing")
        if self.status == "processing":
            self._enter("cancelling")

    @rule(worker=WORKERS, status=st.sampled_from(["completed", "failed"]))
    def settle(self, worker: str, status: str) -> None:
        task = self.held.get(worker)
        if task is None:
            return
        ours = task.attempt == self.attempt and self.status in ("processing", "cancelling")
        expected = ("cancelled" if self.status == "cancelling" else status) if ours else None
        assert task.settle(status) == expected
        if expected is not None:
            self._enter(expected)

    @precondition(lambda self: self.status == "processing")
    @rule()
    def take_over_from_a_dead_worker(self) -> None:
        Task.unscoped.filter(pk=self.task.pk, status="processing").update(status="queued")
        self.status = "queued"

    @invariant()
    def the_row_is_as_the_model(self) -> None:
        row = row_of(self.task)
        assert (row["status"], row["attempt"]) == (self.status, self.attempt)
        assert len(self.ends) <= 1
        assert (row["finished_at"] is not None) == bool(self.ends)


def test_any_history_of_a_task_follows_the_model(db: None) -> None:
    run_state_machine_as_test(
        LifeOfATask, settings=hypothesis_settings(max_examples=60, stateful_step_count=20)
    )


@pytest.mark.parametrize("status", sorted(set(TaskStatus.values) - {"completed", "failed"}))
def test_a_run_ends_completed_or_failed_and_not_otherwise(tenant: Tenant, status: str) -> None:
    task = Task.claim(make_task(tenant).pk, tenant.pk)
    assert task is not None
    before = row_of(task)
    with pytest.raises(ValueError, match="completed or failed"):
        task.settle(status)
    assert row_of(task) == before
