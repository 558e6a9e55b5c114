"""SIGTERM of a worker with runs under way: it finishes them, or others go on with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connection

from core import valkey
from core.broker.scripts import ROOT
from core.events import log
from core.events.groups import session_name
from core.models import Task, Tenant, UsageRecord
from tests.core.actions.conftest import Waiting
from tests.core.broker.server import eventually
from tests.factories import make_agent, make_run, make_session
from tests.workers import Worker

Start = Callable[..., Worker]


@pytest.fixture
def start(committed_tenant: Tenant, tmp_path: Path) -> Iterator[Start]:
    """Begin a worker, and wait until it consumes."""
    workers: list[Worker] = []

    def begin(**options: float) -> Worker:
        workers.append(Worker(tmp_path / f"w{len(workers)}.log", **options))
        workers[-1].ready()
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()


def long_run(tenant: Tenant, tokens: int) -> Task:
    """A run that speaks for about `tokens` times 15 ms."""
    return make_run(make_session(make_agent(tenant, model="long", max_output_tokens=tokens)), "Go on.")


def row_of(task: Task) -> Task:
    row: Task = Task.unscoped.get(pk=task.pk)
    return row


def speaks(task: Task) -> bool:
    return valkey.client().xlen(log._log(session_name(task.tenant_id, task.session_id))) > 1


def names_of(task: Task) -> list[bytes]:
    entries = valkey.client().xrange(log._log(session_name(task.tenant_id, task.session_id)))
    return [fields[b"e"] for _, fields in entries]


def test_a_worker_that_is_told_to_end_finishes_what_it_has(
    committed_tenant: Tenant, start: Start, waiting: Waiting
) -> None:
    worker = start(drain=60)
    task = long_run(committed_tenant, 100)
    eventually(lambda: speaks(task))
    worker.ask_to_end()
    eventually(lambda: "Warm shutdown" in worker.printed())
    late = long_run(committed_tenant, 5)
    assert worker.ended() == 0
    row = row_of(task)
    assert (row.status, row.attempt, row.crashes) == ("completed", 1, 0)
    # What came meanwhile waits for another one.
    assert (row_of(late).status, row_of(late).attempt) == ("queued", 0)
    assert len(waiting("agent", late.pk)) == 1
    start()
    eventually(lambda: row_of(late).status == "completed")


def test_what_it_does_not_finish_in_time_others_go_on_with(
    committed_tenant: Tenant, start: Start, waiting: Waiting
) -> None:
    worker = start(drain=0.2)
    task, other = long_run(committed_tenant, 250), long_run(committed_tenant, 250)
    eventually(lambda: speaks(task) and speaks(other))
    behind = [long_run(committed_tenant, 5) for _ in range(2)]
    eventually(lambda: all(row_of(task).status == "completed" for task in behind))
    worker.ask_to_end()
    assert worker.ended() == 0
    for run in (task, other):
        row = row_of(run)
        assert (row.status, row.attempt, row.crashes) == ("queued", 2, 0)
        # At the head of its queue, at once: nobody waits until a lease has run out.
        assert len(waiting("agent", run.pk)) == 1
        assert list(UsageRecord.unscoped.filter(task=run).values_list("attempt", "accuracy")) == [
            (1, "estimated")
        ]
    assert valkey.client().hget(f"{ROOT}:agent:running", committed_tenant.pk) is None
    late = long_run(committed_tenant, 5)
    queue = valkey.client().lrange(f"{ROOT}:agent:m:{task.queue}", 0, -1)
    assert [str(late.pk).encode() in entry for entry in queue] == [True, False, False]
    start()
    eventually(lambda: {row_of(run).status for run in (task, other, late)} == {"completed"})
    for run in (task, other):
        row = row_of(run)
        assert (row.attempt, row.crashes) == (2, 0)
        told = names_of(run)
        again = [number for number, event in enumerate(told) if b'"handed_over"' in event]
        assert len(again) == 1
        assert b"agent_execution_started" in told[again[0] + 1]
        records = UsageRecord.unscoped.filter(task=run).order_by("attempt")
        assert list(records.values_list("attempt", "accuracy")) == [(1, "estimated"), (2, "exact")]


def test_a_killed_workers_run_is_taken_over(committed_tenant: Tenant, start: Start) -> None:
    worker = start()
    task = long_run(committed_tenant, 250)
    eventually(lambda: speaks(task))
    worker.kill()
    start()
    eventually(lambda: row_of(task).status == "completed", 60)
    row = row_of(task)
    assert (row.attempt, row.crashes) == (2, 1)
    assert any(b'"worker_lost"' in event for event in names_of(task))
    records = UsageRecord.unscoped.filter(task=task).order_by("attempt")
    assert list(records.values_list("attempt", "accuracy")) == [(1, "unknown"), (2, "exact")]
    connection.close()
