"""What is counted of tasks, and what an attempt leaves in the log and in its trace."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

from core import metrics, tracing
from core.actions.base import Settlement
from core.actions.bus import enqueue, execute
from core.actions.notices import NoticeRelayAction
from core.actions.observed import first_token, observed
from core.actions.tasks import TaskCancelAction
from core.actions.worker import run_task, settle, tell_again
from core.models import Task, Tenant
from core.tenancy import tenant_scope
from tests.factories import claim, make_task

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

BUCKETS = [*(f"{bound:g}" for bound in metrics.LONG), "+Inf"]

Counted = Callable[..., float]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """How often something was counted in this test, of all tenants."""
    numbers: dict[tuple[str, str], float] = {}
    monkeypatch.setattr(metrics, "_counted", numbers)

    def of(*words: str, tenant_id: str = "") -> float:
        return numbers.get((tenant_id, metrics.BETWEEN.join(words)), 0.0)

    return of


def test_what_was_rolled_back_was_not_accepted(committed_tenant: Tenant, counted: Counted) -> None:
    with tenant_scope(committed_tenant.pk):
        with pytest.raises(RuntimeError), transaction.atomic():
            enqueue(NoticeRelayAction(subject="x"))
            raise RuntimeError
        assert counted("nooble_tasks_accepted", "notice.relay") == 0
        enqueue(NoticeRelayAction(subject="x"))
    assert counted("nooble_tasks_accepted", "notice.relay") == 1
    assert counted("nooble_tasks_accepted", "notice.relay", tenant_id=committed_tenant.pk) == 1


def test_an_end_is_counted_once_and_after_its_commit(committed_tenant: Tenant, counted: Counted) -> None:
    task = claim(make_task(committed_tenant))
    with tenant_scope(committed_tenant.pk):
        with pytest.raises(RuntimeError), transaction.atomic():
            settle(task, Settlement("completed"))
            raise RuntimeError
        assert counted("nooble_tasks_finished", "test.nothing", "completed") == 0
        settle(task, Settlement("completed"))
        settle(task, Settlement("completed"))
    assert counted("nooble_tasks_finished", "test.nothing", "completed") == 1
    assert counted("nooble_tasks_finished", "test.nothing", "completed", tenant_id=committed_tenant.pk) == 1


def test_a_task_that_never_began_ends_too(committed_tenant: Tenant, counted: Counted) -> None:
    task = make_task(committed_tenant)
    with tenant_scope(committed_tenant.pk):
        execute(TaskCancelAction(task_id=task.pk))
    assert counted("nooble_tasks_finished", "test.nothing", "cancelled") == 1


def test_another_attempt_is_counted_by_its_reason(committed_tenant: Tenant, counted: Counted) -> None:
    tell_again(make_task(committed_tenant), "worker_lost")
    assert counted("nooble_tasks_attempts_repeated", "worker_lost") == 1


def test_an_attempt_is_done_in_the_trace_of_who_asked(
    tenant: Tenant, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    task = claim(make_task(tenant, traceparent=HEADER, request_id="my-request"))
    with observed(task) as seen:
        context = tracing.current()
        first_token()
        seen.status = "completed"
    assert context is not None
    assert (context.trace.header, context.request_id) == (HEADER, "my-request")
    assert context.task_id == str(task.pk)
    assert tracing.current() is None
    assert sum(counted("nooble_first_token_seconds", word) for word in BUCKETS) == 1
    waits = (counted("nooble_task_queue_seconds", "agent", word) for word in BUCKETS)
    assert sum(waits) == 1
    line: Any = next(record.msg for record in caplog.records if record.name == "core.actions.observed")
    assert (line["event"], line["action"], line["status"]) == ("task", "test.nothing", "completed")


def test_a_later_attempt_does_not_wait_a_second_time(tenant: Tenant, counted: Counted) -> None:
    task = claim(make_task(tenant, attempt=2))
    with observed(task):
        pass
    assert not any(counted("nooble_task_queue_seconds", "agent", word) for word in BUCKETS)


def test_what_a_task_asks_for_is_of_the_same_trace_and_request(committed_tenant: Tenant) -> None:
    with tenant_scope(committed_tenant.pk), tracing.context(HEADER, request_id="my-request"):
        parent = enqueue(NoticeRelayAction(subject="x"))
    assert (parent.traceparent, parent.request_id) == (HEADER, "my-request")
    with tenant_scope(committed_tenant.pk):
        # Outside of a context, as where the sweeper ends it.
        child = enqueue(NoticeRelayAction(subject="x"), parent=parent)
        alone = enqueue(NoticeRelayAction(subject="y"))
    assert (child.traceparent, child.request_id) == (HEADER, "my-request")
    assert (alone.traceparent, alone.request_id) == ("", "")


def test_a_worker_tells_what_it_did(committed_tenant: Tenant, counted: Counted) -> None:
    with tenant_scope(committed_tenant.pk):
        task = enqueue(NoticeRelayAction(subject="x"))
    run_task(str(task.pk), committed_tenant.pk)
    assert Task.unscoped.get(pk=task.pk).status == "completed"
    assert counted("nooble_tasks_finished", "notice.relay", "completed") == 1
    assert sum(counted("nooble_task_run_seconds", "notice.relay", word) for word in BUCKETS) == 1
