"""The worker's wrapper: claim, run, settle, callback."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Reject
from django.db import OperationalError, connection

from core import aio, valkey
from core.actions import running, worker
from core.actions.base import Settlement
from core.actions.bus import enqueue
from core.actions.registry import handles
from core.actions.running import Stopped, StopReason
from core.actions.worker import register_tasks, run_task
from core.errors import Conflict, NotFound
from core.events import log
from core.events.groups import session_name
from core.events.tasks import StatusUpdate, TaskStatusUpdate, envelope_of
from core.ids import uuid7
from core.models import Task, Tenant
from core.tenancy import NoTenantScope, current_tenant_id, tenant_scope
from tests.core.actions.conftest import EchoAction, LocalAction, NoteAction, NoteResult, Waiting, works
from tests.factories import make_tenant

pytestmark = pytest.mark.usefixtures("verbs")


def enqueued(tenant: Tenant, *, callback: bool = True) -> Task:
    """A note that waits, followed by an echo."""
    with tenant_scope(tenant.pk):
        return enqueue(
            NoteAction(text="hi"),
            callback=(lambda task_id: EchoAction(text="then", task_id=task_id)) if callback else None,
            session_id="s",
        )


def run(task: Task) -> None:
    run_task(str(task.pk), task.tenant_id)
    task.refresh_from_db()


def callbacks_of(task: Task) -> list[Task]:
    return list(Task.unscoped.filter(global_task_id=task.global_task_id).exclude(pk=task.pk))


def raising(error: BaseException) -> Any:
    def handler(action: Any) -> None:
        raise error

    return handler


@pytest.fixture(autouse=True)
def echo(verbs: None) -> None:
    handles(EchoAction)(lambda action: NoteResult(text=action.text))


def test_a_task_runs_in_its_tenants_scope_and_ends_with_its_result(committed_tenant: Tenant) -> None:
    seen = []

    @handles(NoteAction)
    def note(action: NoteAction) -> NoteResult:
        seen.append((current_tenant_id(), Task.objects.get(action="test.note").status))
        return NoteResult(text=action.text)

    task = enqueued(committed_tenant)
    run(task)
    assert seen == [(committed_tenant.pk, "processing")]
    assert (task.status, task.result, task.error, task.attempt) == ("completed", {"text": "hi"}, None, 1)
    with pytest.raises(NoTenantScope):
        current_tenant_id()


def test_its_callback_follows_urgently_under_the_same_root(
    committed_tenant: Tenant, waiting: Waiting
) -> None:
    handles(NoteAction)(lambda action: NoteResult(text=action.text))
    task = enqueued(committed_tenant)
    run(task)
    [callback] = callbacks_of(task)
    assert (callback.action, callback.payload) == ("test.echo", {"text": "then", "task_id": str(task.pk)})
    assert callback.queue == f"orchestrator:{committed_tenant.pk}:echo:high"
    assert (callback.status, callback.session_id) == ("queued", "s")
    assert len(waiting("orchestrator", callback.pk)) == 1
    run(callback)
    assert (callback.status, callback.result) == ("completed", {"text": "then"})


def test_without_a_callback_nothing_follows(committed_tenant: Tenant) -> None:
    handles(NoteAction)(lambda action: NoteResult(text=action.text))
    task = enqueued(committed_tenant, callback=False)
    run(task)
    assert callbacks_of(task) == []


def test_a_message_that_comes_twice_has_no_effect(committed_tenant: Tenant) -> None:
    calls = []

    @handles(NoteAction)
    def note(action: NoteAction) -> NoteResult:
        calls.append(action)
        return NoteResult(text=action.text)

    task = enqueued(committed_tenant)
    for _ in range(3):
        run(task)
    assert len(calls) == 1
    assert len(callbacks_of(task)) == 1
    assert task.attempt == 1


def test_a_message_that_comes_during_the_run_has_no_effect(committed_tenant: Tenant) -> None:
    calls = []

    @works(NoteAction)
    def note(action: NoteAction, task: Task) -> Settlement:
        calls.append(task.attempt)
        claimed_again = Task.claim(task.pk, task.tenant_id, 60)
        assert claimed_again is None
        return Settlement(Task.Status.COMPLETED, result={})

    run(enqueued(committed_tenant))
    assert calls == [1]


@pytest.mark.parametrize("stranger", ["", "somebody-else", None])
def test_a_message_of_the_wrong_tenant_has_no_effect(committed_tenant: Tenant, stranger: str | None) -> None:
    handles(NoteAction)(raising(AssertionError("it ran")))
    task = enqueued(committed_tenant)
    before = Task.unscoped.filter(pk=task.pk).values().get()
    wrong = make_tenant().pk if stranger is None else stranger
    try:
        run_task(str(task.pk), wrong)
    except NoTenantScope:
        assert wrong == ""
    assert Task.unscoped.filter(pk=task.pk).values().get() == before
    assert callbacks_of(task) == []


def test_a_message_without_a_row_has_no_effect(committed_tenant: Tenant) -> None:
    run_task(str(uuid7()), committed_tenant.pk)
    assert not Task.unscoped.exists()


def test_a_cancelled_task_does_not_run(committed_tenant: Tenant) -> None:
    handles(NoteAction)(raising(AssertionError("it ran")))
    task = enqueued(committed_tenant)
    assert Task.cancel_unstarted(task.pk, "ada")
    run(task)
    assert (task.status, task.attempt) == ("cancelled", 0)


def test_an_expected_error_fails_the_task_with_its_name_and_the_callback_follows(
    committed_tenant: Tenant,
) -> None:
    handles(NoteAction)(raising(NotFound("No such note.", details={"id": "7"})))
    task = enqueued(committed_tenant)
    run(task)
    assert (task.status, task.result) == ("failed", None)
    assert task.error == {"type": "NotFound", "message": "No such note.", "details": {"id": "7"}}
    assert len(callbacks_of(task)) == 1


def test_a_bug_fails_the_task_and_stays_a_secret(
    committed_tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    handles(NoteAction)(raising(RuntimeError("the secret is plum")))
    task = enqueued(committed_tenant)
    run(task)
    assert task.status == "failed"
    assert task.error["type"] == "InternalError"
    assert "plum" not in str(task.error)
    assert "the secret is plum" in caplog.text
    assert len(callbacks_of(task)) == 1


def test_what_a_failed_handler_wrote_is_gone(committed_tenant: Tenant) -> None:
    @handles(NoteAction)
    def note(action: NoteAction) -> NoteResult:
        enqueue(EchoAction(text="from the handler"))
        raise Conflict

    task = enqueued(committed_tenant, callback=False)
    run(task)
    assert task.status == "failed"
    assert Task.unscoped.count() == 1


def test_a_payload_that_its_action_does_not_take_any_more_fails_the_task(committed_tenant: Tenant) -> None:
    handles(NoteAction)(raising(AssertionError("it ran")))
    task = enqueued(committed_tenant)
    Task.unscoped.filter(pk=task.pk).update(payload={"gone": 1})
    run(task)
    assert (task.status, task.error["type"]) == ("failed", "InternalError")


def test_an_action_that_nobody_handles_any_more_fails_the_task(committed_tenant: Tenant) -> None:
    task = enqueued(committed_tenant)
    run(task)
    assert (task.status, task.error["type"]) == ("failed", "InternalError")


def test_a_cancelled_run_ends_cancelled(committed_tenant: Tenant) -> None:
    @works(NoteAction)
    def note(action: NoteAction, task: Task) -> Settlement:
        assert Task.ask_to_cancel(task.pk, "ada")
        raise Stopped(StopReason.CANCELLED)

    task = enqueued(committed_tenant)
    run(task)
    assert (task.status, task.cancelled_by) == ("cancelled", "ada")
    assert len(callbacks_of(task)) == 1


def test_answer_status_and_callback_are_one_transaction(committed_tenant: Tenant) -> None:
    def write(status: str) -> None:
        enqueue(EchoAction(text="the answer"))
        raise RuntimeError("the disk is full")

    works(NoteAction)(lambda action, task: Settlement("completed", result={"text": "done"}, write=write))
    task = enqueued(committed_tenant)
    with pytest.raises(RuntimeError, match="disk"):
        run_task(str(task.pk), task.tenant_id)
    task.refresh_from_db()
    assert (task.status, task.result) == ("processing", None)
    assert callbacks_of(task) == []
    assert Task.unscoped.count() == 1


def test_a_callback_that_cannot_be_written_ends_the_settling_too(committed_tenant: Tenant) -> None:
    written = []
    works(NoteAction)(lambda action, task: Settlement("completed", result={}, write=written.append))
    task = enqueued(committed_tenant)
    Task.unscoped.filter(pk=task.pk).update(callback={"action": "test.nobody", "payload": {}})
    with pytest.raises(KeyError):
        run_task(str(task.pk), task.tenant_id)
    task.refresh_from_db()
    assert (written, task.status) == (["completed"], "processing")


def test_a_worker_that_lost_its_task_writes_nothing(committed_tenant: Tenant) -> None:
    told: list[str] = []

    @works(NoteAction)
    def note(action: NoteAction, task: Task) -> Settlement:
        assert task.give_back(crashed=True)  # its lease expired …
        assert Task.claim(task.pk, task.tenant_id, 60) is not None  # … and another one took over
        return Settlement("completed", result={"text": "late"}, write=told.append, announce=told.append)

    task = enqueued(committed_tenant)
    run(task)
    assert told == []
    assert (task.status, task.attempt, task.result) == ("processing", 2, None)
    assert callbacks_of(task) == []


def test_the_end_is_announced_after_the_commit_and_before_the_callback(
    committed_tenant: Tenant, waiting: Waiting
) -> None:
    order: list[Any] = []

    def write(status: str) -> None:
        order.append(("write", status, connection.in_atomic_block))

    def announce(status: str) -> None:
        [callback] = callbacks_of(task)
        stands = Task.unscoped.get(pk=task.pk).status
        published = len(waiting("orchestrator", callback.pk))
        order.append(("announce", status, connection.in_atomic_block, stands, published))

    works(NoteAction)(lambda action, task: Settlement("completed", result={}, write=write, announce=announce))
    task = enqueued(committed_tenant)
    run(task)
    assert order == [("write", "completed", True), ("announce", "completed", False, "completed", 0)]
    [callback] = callbacks_of(task)
    assert len(waiting("orchestrator", callback.pk)) == 1


def test_an_announcement_that_fails_stops_no_callback(committed_tenant: Tenant, waiting: Waiting) -> None:
    def announce(status: str) -> None:
        raise ConnectionError

    works(NoteAction)(lambda action, task: Settlement("completed", result={}, announce=announce))
    task = enqueued(committed_tenant)
    run(task)
    assert task.status == "completed"
    [callback] = callbacks_of(task)
    assert len(waiting("orchestrator", callback.pk)) == 1


def test_what_was_cancelled_meanwhile_is_told_so(committed_tenant: Tenant) -> None:
    told: list[str] = []

    @works(NoteAction)
    def note(action: NoteAction, task: Task) -> Settlement:
        Task.ask_to_cancel(task.pk, "ada")
        return Settlement("completed", result={"text": "done"}, write=told.append, announce=told.append)

    task = enqueued(committed_tenant)
    run(task)
    assert told == ["cancelled", "cancelled"]
    assert (task.status, task.result) == ("cancelled", {"text": "done"})


def told_to(task: Task) -> list[dict[str, Any]]:
    """The events of the task's session, which was begun by the test."""
    entries = valkey.client().xrange(log._log(session_name(task.tenant_id, task.session_id)))
    return [json.loads(fields[b"e"]) for _, fields in entries]


def hands_over(told: list[str], reason: str = "handed_over") -> Settlement:
    return Settlement("queued", write=told.append, announce=told.append, reason=reason)


def test_a_run_that_goes_on_elsewhere_gives_its_attempt_back(committed_tenant: Tenant) -> None:
    told: list[str] = []
    works(NoteAction)(lambda action, task: hands_over(told, "provider_fault"))
    task = enqueued(committed_tenant)
    log.begin(session_name(task.tenant_id, task.session_id))
    with pytest.raises(Reject) as rejected:
        run_task(str(task.pk), task.tenant_id)
    assert rejected.value.requeue is True
    task.refresh_from_db()
    assert (task.status, task.attempt, task.crashes, task.result) == ("queued", 2, 0, None)
    assert told == ["queued"]
    assert callbacks_of(task) == []
    [event] = told_to(task)
    assert (event["event"], event["data"]) == (
        "task_status_update",
        {"status": "queued", "details": {"attempt": 2, "reason": "provider_fault"}},
    )
    assert not running._runs
    # The log takes nothing of the old attempt any more.
    late = TaskStatusUpdate(**envelope_of(task), data=StatusUpdate(status="queued", details={}))
    assert aio.run(log.append(late, 1)) is None
    assert aio.run(log.append(late, 2)) is not None


def test_a_run_that_was_cancelled_when_it_was_to_go_on_elsewhere_ends(committed_tenant: Tenant) -> None:
    told: list[str] = []

    @works(NoteAction)
    def note(action: NoteAction, task: Task) -> Settlement:
        assert Task.ask_to_cancel(task.pk, "ada")
        return hands_over(told)

    task = enqueued(committed_tenant)
    run(task)
    assert (task.status, task.attempt, told) == ("cancelled", 1, ["cancelled", "cancelled"])
    assert len(callbacks_of(task)) == 1


def test_a_run_that_was_taken_from_us_is_not_handed_over(committed_tenant: Tenant) -> None:
    told: list[str] = []

    @works(NoteAction)
    def note(action: NoteAction, task: Task) -> Settlement:
        assert task.give_back(crashed=True)
        assert Task.claim(task.pk, task.tenant_id, 60) is not None
        return hands_over(told, StopReason.LOST)

    task = enqueued(committed_tenant)
    run(task)
    assert (task.status, task.attempt, told) == ("processing", 2, [])


def test_a_worker_that_ends_takes_no_more_tasks(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles(NoteAction)(raising(AssertionError("it ran")))
    task = enqueued(committed_tenant)
    draining = threading.Event()
    draining.set()
    monkeypatch.setattr(worker, "draining", draining)
    with pytest.raises(Reject) as rejected:
        run_task(str(task.pk), task.tenant_id)
    assert rejected.value.requeue is True
    task.refresh_from_db()
    assert (task.status, task.attempt) == ("queued", 0)


def test_what_runs_is_renewed_from_the_claim_on(committed_tenant: Tenant) -> None:
    seen = []

    @works(NoteAction)
    def note(action: NoteAction, task: Task) -> Settlement:
        seen.append(running.claimed())
        return Settlement("completed", result={})

    task = enqueued(committed_tenant)
    run(task)
    assert seen == [{task.pk: 1}]
    assert running.claimed() == {}


def test_the_next_task_of_the_key_follows(committed_tenant: Tenant, waiting: Waiting) -> None:
    handles(NoteAction)(lambda action: NoteResult(text=action.text))
    with tenant_scope(committed_tenant.pk):
        first = enqueue(NoteAction(), serial_key="k")
        second = enqueue(NoteAction(), serial_key="k", behind=True)
    run(second)
    assert (second.status, waiting("orchestrator", second.pk)) == ("pending", [])
    run(first)
    assert first.status == "completed"
    assert len(waiting("orchestrator", second.pk)) == 1
    run(second)
    assert second.status == "completed"


def test_celery_knows_one_task_per_queued_action_by_the_actions_name() -> None:
    handles(NoteAction)(lambda action: None)
    handles(LocalAction)(lambda action: None)
    app = Celery("test", set_as_current=False)
    register_tasks(app)
    assert {"test.note", "test.echo", "agent.execute", "websocket.send_message"} <= set(app.tasks)
    assert "test.local" not in app.tasks
    assert "chat.send_message" not in app.tasks


def test_a_message_that_is_no_uuid_is_refused(committed_tenant: Tenant) -> None:
    with pytest.raises(ValueError, match="UUID"):
        run_task("not-a-task", committed_tenant.pk)
    assert isinstance(uuid7(), uuid.UUID)


def test_a_message_that_comes_twice_to_one_process_does_not_disturb_the_cancel(
    committed_tenant: Tenant,
) -> None:
    order: list[str] = []

    @works(NoteAction)
    def note(action: NoteAction, task: Task) -> Settlement:
        run_task(str(task.pk), task.tenant_id)  # the copy
        order.append("the copy has gone")

        async def until_the_hint() -> None:
            running.stop(task.pk, StopReason.CANCELLED)  # as the listener does
            await asyncio.Event().wait()

        try:
            aio.run(running.until_stopped(task.pk, until_the_hint()))
        except Stopped:
            order.append("cancelled")
        return Settlement("completed", result={})

    task = enqueued(committed_tenant)
    run(task)
    assert order == ["the copy has gone", "cancelled"]
    assert (task.status, task.attempt) == ("completed", 1)


def test_a_copy_claims_nothing_while_this_process_has_the_task(committed_tenant: Tenant) -> None:
    handles(NoteAction)(raising(AssertionError("it ran")))
    task = enqueued(committed_tenant)
    with running.running(task.pk):
        run(task)
    assert (task.status, task.attempt) == ("queued", 0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "AWAY_SECONDS", 0)


def end_my_connection() -> None:
    """As a restart of the database ends it: the next statement finds it closed."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [pid] = cursor.fetchone()

    def terminate() -> None:
        try:
            with connection.cursor() as other:
                other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
                assert other.fetchone() == (True,)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(terminate).result(timeout=30)


@pytest.mark.usefixtures("impatient")
def test_an_answer_outlives_the_connection_it_is_settled_on(committed_tenant: Tenant) -> None:
    told: list[str] = []

    @works(NoteAction)
    def note(action: NoteAction, task: Task) -> Settlement:
        end_my_connection()
        return Settlement("completed", result={"text": "done"}, write=told.append, announce=told.append)

    task = enqueued(committed_tenant)
    run(task)
    assert (task.status, task.result, task.attempt) == ("completed", {"text": "done"}, 1)
    assert told == ["completed", "completed"]
    assert len(callbacks_of(task)) == 1


@pytest.mark.usefixtures("impatient")
def test_a_database_that_goes_in_the_middle_of_settling_leaves_nothing_half_done(
    committed_tenant: Tenant,
) -> None:
    errors = [OperationalError("going"), OperationalError("gone")]
    announced: list[str] = []

    def write(status: str) -> None:
        enqueue(EchoAction(text="the answer"))
        if errors:
            raise errors.pop()

    works(NoteAction)(
        lambda action, task: Settlement("completed", result={}, write=write, announce=announced.append)
    )
    task = enqueued(committed_tenant)
    run(task)
    assert (task.status, errors, announced) == ("completed", [], ["completed"])
    assert Task.unscoped.filter(payload={"text": "the answer"}).count() == 1
    assert len(callbacks_of(task)) == 1


@pytest.mark.usefixtures("impatient")
def test_a_database_that_stays_away_is_not_waited_for_for_ever(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def settle(task: Task, status: str, **fields: Any) -> None:
        tries.append(status)
        raise OperationalError

    works(NoteAction)(lambda action, task: Settlement("completed", result={}))
    task = enqueued(committed_tenant)
    monkeypatch.setattr(Task, "settle", settle)
    with pytest.raises(OperationalError):
        run_task(str(task.pk), task.tenant_id)
    assert len(tries) == worker.AWAY_TRIES
    assert not running._runs


@pytest.mark.usefixtures("impatient")
def test_a_task_that_cannot_be_claimed_goes_back_to_its_queue(committed_tenant: Tenant) -> None:
    handles(NoteAction)(lambda action: NoteResult(text=action.text))
    task = enqueued(committed_tenant)
    end_my_connection()
    with pytest.raises(Reject) as rejected:
        run_task(str(task.pk), task.tenant_id)
    assert rejected.value.requeue is True
    assert not running._runs
    connection.close()  # as Celery does before its next task
    task.refresh_from_db()
    assert (task.status, task.attempt) == ("queued", 0)
    run(task)
    assert (task.status, task.attempt) == ("completed", 1)
