"""`execute` here and now, `enqueue` for a worker."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from pydantic import ValidationError

from core.actions.bus import answer, enqueue, execute, publish_next, publish_task
from core.actions.registry import handles
from core.errors import Conflict, NotFound
from core.models import Task, Tenant
from core.queues.names import NORMAL, Priority
from core.tenancy import NoTenantScope, tenant_scope
from tests.core.actions.conftest import EchoAction, LocalAction, NoteAction, NoteResult, Waiting, works
from tests.factories import claim, make_task

pytestmark = pytest.mark.usefixtures("verbs")


def test_execute_gives_the_handlers_result(db: None) -> None:
    handles(NoteAction)(lambda action: NoteResult(text=action.text.upper()))
    assert execute(NoteAction(text="hi")) == NoteResult(text="HI")


def test_what_only_a_worker_can_do_is_not_executed(db: None) -> None:
    called = []
    works(NoteAction)(lambda action, task: called.append(action))
    with pytest.raises(TypeError, match="enqueue it"):
        execute(NoteAction())
    assert called == []


def test_a_handler_that_fails_leaves_nothing(committed_tenant: Tenant) -> None:
    @handles(NoteAction)
    def fail(action: NoteAction) -> NoteResult:
        make_task(committed_tenant)
        raise Conflict

    with pytest.raises(Conflict):
        execute(NoteAction())
    assert not Task.unscoped.exists()


def test_an_inner_action_is_part_of_the_outer_ones_transaction(committed_tenant: Tenant) -> None:
    @handles(EchoAction)
    def inner(action: EchoAction) -> NoteResult:
        make_task(committed_tenant)
        return NoteResult(text="done")

    @handles(NoteAction)
    def outer(action: NoteAction) -> NoteResult:
        execute(EchoAction())
        assert Task.unscoped.count() == 1
        raise Conflict

    with pytest.raises(Conflict):
        execute(NoteAction())
    assert not Task.unscoped.exists()


def test_an_inner_actions_error_ends_the_outer_one_even_when_it_is_caught(committed_tenant: Tenant) -> None:
    @handles(EchoAction)
    def inner(action: EchoAction) -> NoteResult:
        raise Conflict

    @handles(NoteAction)
    def outer(action: NoteAction) -> NoteResult:
        make_task(committed_tenant)
        try:
            execute(EchoAction())
        except Conflict:
            pass
        return NoteResult(text="nothing happened")

    execute(NoteAction())
    assert not Task.unscoped.exists()


def test_a_handler_may_open_its_own_transactions(transactional_db: None) -> None:
    seen = []
    handles(LocalAction, atomic=False)(lambda action: seen.append(connection.in_atomic_block))
    execute(LocalAction())
    handles(NoteAction)(lambda action: seen.append(connection.in_atomic_block))
    execute(NoteAction())
    assert seen == [False, True]


def test_answer_of_a_success(db: None) -> None:
    handles(NoteAction)(lambda action: NoteResult(text=action.text))
    result, error = answer(NoteAction(action_id="mine"))
    assert error is None
    assert (result.action_id, result.success, result.result, result.error) == (
        "mine",
        True,
        {"text": "hello"},
        None,
    )
    assert result.execution_time >= 0


def test_answer_of_nothing(db: None) -> None:
    handles(LocalAction)(lambda action: None)
    result, error = answer(LocalAction())
    assert (result.success, result.result, error) == (True, None, None)


def raising(error: Exception) -> Any:
    def handler(action: Any) -> None:
        raise error

    return handler


def test_answer_of_an_expected_error(transactional_db: None) -> None:
    refusal = NotFound(details={"id": "7"})
    handles(NoteAction)(raising(refusal))
    result, error = answer(NoteAction())
    assert error is refusal
    assert not result.success
    assert result.error is not None
    assert (result.error.type, result.error.details) == ("NotFound", {"id": "7"})


def test_answer_when_the_database_is_away(transactional_db: None) -> None:
    handles(NoteAction)(raising(OperationalError("host 10.0.0.7 refused")))
    result, error = answer(NoteAction())
    assert error is not None
    assert (error.type, error.http_status) == ("ServiceUnavailable", 503)
    assert "10.0.0.7" not in result.model_dump_json()


def test_answer_tells_callers_nothing_of_a_bug_and_the_log_everything(
    transactional_db: None, caplog: pytest.LogCaptureFixture
) -> None:
    handles(NoteAction)(raising(RuntimeError("the secret is plum")))
    result, error = answer(NoteAction())
    assert error is not None
    assert error.http_status == 500
    assert "plum" not in result.model_dump_json()
    assert "the secret is plum" in caplog.text


def test_actions_are_frozen_and_closed() -> None:
    action = NoteAction()
    with pytest.raises(ValidationError):
        action.text = "changed"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        NoteAction(txet="typo")  # type: ignore[call-arg]


def test_only_actions_with_a_queue_are_enqueued(tenant: Tenant) -> None:
    with tenant_scope(tenant.pk), pytest.raises(TypeError, match="has no queue"):
        enqueue(LocalAction())


def test_nothing_is_enqueued_outside_a_tenant_scope(db: None) -> None:
    with pytest.raises(NoTenantScope):
        enqueue(NoteAction())
    assert not Task.unscoped.exists()


def test_a_task_is_written_as_it_was_asked_for(tenant: Tenant) -> None:
    handles(EchoAction)(lambda action: None)
    agent_id = uuid.uuid4()
    with tenant_scope(tenant.pk):
        task = enqueue(
            NoteAction(text="hi"),
            priority=Priority.P9,
            callback=lambda task_id: EchoAction(text="then", task_id=task_id),
            agent_id=agent_id,
            session_id="s",
        )
    task.refresh_from_db()
    assert task.id.version == 7
    assert task.global_task_id == task.pk
    assert (task.tenant_id, task.status, task.attempt) == (tenant.pk, "pending", 0)
    assert (task.action, task.payload) == ("test.note", {"text": "hi"})
    assert task.callback == {"action": "test.echo", "payload": {"text": "then", "task_id": str(task.pk)}}
    assert (task.queue, task.priority) == (f"orchestrator:{tenant.pk}:note:high", 9)
    assert (task.agent_id, task.session_id) == (agent_id, "s")


def test_a_child_shares_its_parents_root_and_the_default_priority(tenant: Tenant) -> None:
    with tenant_scope(tenant.pk):
        root = enqueue(NoteAction())
        child = enqueue(NoteAction(), parent=root)
        grandchild = enqueue(NoteAction(), parent=child)
    assert root.global_task_id == child.global_task_id == grandchild.global_task_id
    assert child.priority == NORMAL


def test_a_priority_of_zero_is_a_priority(tenant: Tenant) -> None:
    with tenant_scope(tenant.pk):
        task = enqueue(NoteAction(), priority=Priority.P0)
    assert (task.priority, task.queue) == (0, f"orchestrator:{tenant.pk}:note:low")


def test_a_task_is_published_after_the_commit_and_not_before(
    committed_tenant: Tenant, waiting: Waiting
) -> None:
    with tenant_scope(committed_tenant.pk), transaction.atomic():
        task = enqueue(NoteAction())
        assert waiting("orchestrator", task.pk) == []
    [message] = waiting("orchestrator", task.pk)
    assert message["headers"]["task"] == "test.note"
    assert message["properties"]["delivery_info"]["routing_key"] == task.queue
    task.refresh_from_db()
    assert task.status == "queued"


def test_the_message_carries_ids_and_nothing_else(committed_tenant: Tenant, waiting: Waiting) -> None:
    with tenant_scope(committed_tenant.pk):
        task = enqueue(NoteAction(text="the secret is plum"))
    [message] = waiting("orchestrator", task.pk)
    assert message["headers"]["kwargsrepr"] == repr(
        {"task_id": str(task.pk), "tenant_id": committed_tenant.pk}
    )
    assert "plum" not in str(message)


def test_a_rollback_publishes_nothing(committed_tenant: Tenant, waiting: Waiting) -> None:
    tasks = []
    with pytest.raises(Conflict), tenant_scope(committed_tenant.pk), transaction.atomic():
        tasks.append(enqueue(NoteAction()))
        raise Conflict
    assert waiting("orchestrator", tasks[0].pk) == []
    assert not Task.unscoped.exists()


@pytest.mark.usefixtures("broker_away")
def test_a_task_waits_while_the_broker_is_away(committed_tenant: Tenant) -> None:
    with tenant_scope(committed_tenant.pk):
        task = enqueue(NoteAction())
    assert task.status == "pending"
    task.refresh_from_db()
    assert task.status == "pending"


def test_publishing_late_does_not_turn_a_claimed_task_back(committed_tenant: Tenant) -> None:
    with tenant_scope(committed_tenant.pk):
        task = enqueue(NoteAction())
    Task.claim(task.pk, committed_tenant.pk, 60)
    publish_task(task)
    task.refresh_from_db()
    assert task.status == "processing"


def test_a_task_behind_another_waits_for_its_end(committed_tenant: Tenant, waiting: Waiting) -> None:
    with tenant_scope(committed_tenant.pk):
        first = enqueue(NoteAction(), serial_key="k")
        second, third = (enqueue(NoteAction(), serial_key="k", behind=True) for _ in range(2))
    sent = [len(waiting("orchestrator", task.pk)) for task in (first, second, third)]
    assert sent == [1, 0, 0]
    assert [task.status for task in Task.open_of("k")] == ["queued", "pending", "pending"]
    claim(first).settle("completed")
    publish_next("k")
    publish_next("k")
    sent = [len(waiting("orchestrator", task.pk)) for task in (first, second, third)]
    assert sent == [1, 1, 0]


def test_no_key_has_no_next_task(committed_tenant: Tenant, waiting: Waiting) -> None:
    task = make_task(committed_tenant)
    publish_next("")
    assert waiting("agent", task.pk) == []


def test_a_task_that_finds_the_one_before_it_just_ended_publishes_itself(
    committed_tenant: Tenant, waiting: Waiting
) -> None:
    """It lined up behind an open task, which has ended before the commit."""
    with tenant_scope(committed_tenant.pk):
        first = claim(enqueue(NoteAction(), serial_key="k"))
        with transaction.atomic():
            line = Task.line_up("k")
            second = enqueue(NoteAction(), serial_key="k", behind=bool(line))
            end_elsewhere(first)
    assert [task.pk for task in line] == [first.pk]
    assert len(waiting("orchestrator", second.pk)) == 1


def end_elsewhere(task: Task) -> None:
    """As its worker does it, which sees nothing of a transaction that goes on here."""

    def end() -> None:
        try:
            with tenant_scope(task.tenant_id):
                assert task.settle("completed")
                publish_next(task.serial_key)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(end).result(30)


def test_whoever_comes_last_publishes_the_next_task(committed_tenant: Tenant, waiting: Waiting) -> None:
    """An end and a new task at once: in whichever order they commit, one of them sees the other."""
    for round_ in range(15):
        key = f"k{round_}"
        with tenant_scope(committed_tenant.pk):
            first = claim(enqueue(NoteAction(), serial_key=key))
        barrier = Barrier(2)

        def ask(key: str = key, barrier: Barrier = barrier) -> Task:
            try:
                barrier.wait(30)
                with tenant_scope(committed_tenant.pk), transaction.atomic():
                    return enqueue(NoteAction(), serial_key=key, behind=bool(Task.line_up(key)))
            finally:
                connection.close()

        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(ask)
            barrier.wait(30)
            assert first.settle("completed")
            publish_next(key)
            second = asked.result(30)
        assert waiting("orchestrator", second.pk)
        assert Task.claim(second.pk, committed_tenant.pk, 60) is not None


def test_a_caller_is_served_though_the_next_task_cannot_be_looked_up(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit stands: the sweeper publishes."""

    def next_of(serial_key: str) -> Any:
        raise OperationalError("gone")

    @handles(EchoAction, atomic=False)
    def ask(action: EchoAction) -> NoteResult:
        return NoteResult(text=enqueue(NoteAction(), serial_key="k", behind=True).status)

    monkeypatch.setattr(Task, "next_of", next_of)
    with tenant_scope(committed_tenant.pk):
        _, failure = answer(EchoAction())
    assert failure is None
    assert Task.unscoped.get(action="test.note").status == "pending"


@pytest.mark.parametrize("error", [OperationalError, DatabaseError])
def test_a_task_that_cannot_be_marked_as_queued_is_published_and_its_caller_served(
    committed_tenant: Tenant, waiting: Waiting, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def mark_queued(task_id: uuid.UUID) -> bool:
        raise error("gone")

    monkeypatch.setattr(Task, "mark_queued", mark_queued)

    @handles(EchoAction, atomic=False)
    def ask(action: EchoAction) -> NoteResult:
        return NoteResult(text=enqueue(NoteAction()).status)

    with tenant_scope(committed_tenant.pk):
        result, failure = answer(EchoAction())
    assert failure is None
    assert result.result == {"text": "pending"}
    task = Task.unscoped.get(action="test.note")
    assert task.status == "pending"
    assert len(waiting("orchestrator", task.pk)) == 1
    assert Task.claim(task.pk, committed_tenant.pk, 60) is not None
