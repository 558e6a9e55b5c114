"""The ground floor's verbs: tasks and API keys."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from django.db import transaction
from pydantic import ValidationError

from core import aio, valkey
from core.actions import cancellation, telling
from core.actions.bus import execute
from core.actions.keys import ApiKeyCreateAction, ApiKeyRevokeAction
from core.actions.tasks import TaskCancelAction, TaskRetryAction
from core.errors import CannotCancel, CannotRetry, NotFound, TaskNotFound
from core.events import log
from core.events.base import Event
from core.events.groups import session_name
from core.events.tasks import StatusUpdate, TaskStatusUpdate, envelope_of
from core.models import ApiKey, Task, Tenant
from core.models.task import FINAL, TaskStatus
from core.selectors import task_origin
from core.tenancy import NoTenantScope, tenant_scope
from tests.factories import claim, make_agent, make_key, make_run, make_session, make_task, make_tenant


def run_of(tenant: Tenant, status: str = "pending") -> Task:
    task = make_run(make_session(make_agent(tenant)), "Hello?")
    Task.unscoped.filter(pk=task.pk).update(status=status)
    task.refresh_from_db()
    return task


def callbacks() -> list[Task]:
    return list(Task.unscoped.filter(action="websocket.send_message"))


@pytest.mark.parametrize("status", ["pending", "queued", "waiting"])
def test_a_task_that_waits_is_cancelled_at_once_and_its_session_hears_of_it(
    tenant: Tenant, status: str
) -> None:
    task = run_of(tenant, status)
    with tenant_scope(tenant.pk):
        cancelled = execute(TaskCancelAction(task_id=task.pk, by="ada"))
    assert cancelled.status == "cancelled"
    task.refresh_from_db()
    assert (task.status, task.cancelled_by) == ("cancelled", "ada")
    [callback] = callbacks()
    assert callback.payload["task_id"] == str(task.pk)


def begin(task: Task) -> str:
    """The task's session has had its first event; gives the name of its log."""
    started = TaskStatusUpdate(**envelope_of(task), data=StatusUpdate(status="processing", details={}))
    assert aio.run(log.append(started, floor=0)) == 1
    return session_name(task.tenant_id, task.session_id)


def test_a_running_task_is_asked_to_stop_and_its_session_hears_of_it(committed_tenant: Tenant) -> None:
    task = run_of(committed_tenant, "processing")
    name = begin(task)
    with tenant_scope(committed_tenant.pk):
        assert execute(TaskCancelAction(task_id=task.pk, by="ada")).status == "cancelling"
    task.refresh_from_db()
    assert task.status == "cancelling"
    assert callbacks() == []
    [(_, body)] = aio.run(log.read(name, 1))
    told = json.loads(body)
    assert (told["event"], told["data"]["status"]) == ("task_status_update", "cancelling")


def test_a_session_without_a_log_gets_none_for_a_cancel(committed_tenant: Tenant) -> None:
    task = run_of(committed_tenant, "processing")
    name = session_name(committed_tenant.pk, task.session_id)
    assert valkey.client().delete(log._marks(name))
    with tenant_scope(committed_tenant.pk):
        assert execute(TaskCancelAction(task_id=task.pk, by="ada")).status == "cancelling"
    assert aio.run(log.last_seq(name)) is None


@pytest.mark.parametrize("away", [False, True])
def test_the_event_leaves_before_the_hint_which_leaves_in_any_case(
    committed_tenant: Tenant, away: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    async def append(event: Event, *args: Any, **kwargs: Any) -> int:
        told.append(event.event)
        if away:
            raise redis.ConnectionError
        return 1

    monkeypatch.setattr(telling, "append", append)
    monkeypatch.setattr(cancellation, "hint", lambda task_id: told.append(f"hint {task_id}"))
    task = run_of(committed_tenant, "processing")
    with tenant_scope(committed_tenant.pk):
        assert execute(TaskCancelAction(task_id=task.pk, by="ada")).status == "cancelling"
    assert told == ["task_status_update", f"hint {task.pk}"]
    assert ("Valkey is away" in caplog.text) == away


def test_only_if_queued_leaves_a_running_task_alone(tenant: Tenant) -> None:
    task = run_of(tenant, "processing")
    with tenant_scope(tenant.pk), pytest.raises(CannotCancel) as refused:
        execute(TaskCancelAction(task_id=task.pk, only_if_queued=True))
    assert refused.value.details == {"status": "processing"}
    task.refresh_from_db()
    assert task.status == "processing"


@pytest.mark.parametrize("status", ["cancelling", *FINAL])
def test_what_has_ended_cannot_be_cancelled(tenant: Tenant, status: str) -> None:
    task = run_of(tenant, status)
    with tenant_scope(tenant.pk), pytest.raises(CannotCancel) as refused:
        execute(TaskCancelAction(task_id=task.pk))
    assert refused.value.details == {"status": status}
    assert callbacks() == []


def test_another_tenants_task_does_not_exist(tenant: Tenant) -> None:
    task = run_of(tenant)
    with tenant_scope(make_tenant().pk):
        for action in (TaskCancelAction(task_id=task.pk), TaskRetryAction(task_id=task.pk)):
            with pytest.raises(TaskNotFound), transaction.atomic():
                execute(action)
    task.refresh_from_db()
    assert task.status == "pending"
    with pytest.raises(NoTenantScope):
        execute(TaskCancelAction(task_id=task.pk))


@pytest.mark.parametrize("status", FINAL)
def test_an_ended_task_is_done_again_as_a_new_one(tenant: Tenant, status: str) -> None:
    task = run_of(tenant, status)
    with tenant_scope(tenant.pk):
        retried = execute(TaskRetryAction(task_id=task.pk))
    again = Task.unscoped.get(pk=retried.task_id)
    assert again.pk != task.pk == retried.retry_of
    assert (again.status, again.attempt, again.retry_of_id) == ("pending", 0, task.pk)
    assert (again.action, again.payload, again.queue, again.priority) == (
        task.action,
        task.payload,
        task.queue,
        task.priority,
    )
    assert (again.session_id, again.agent_id) == (task.session_id, task.agent_id)
    assert again.global_task_id == task.global_task_id
    assert again.callback["payload"] == task.callback["payload"] | {"task_id": str(again.pk)}
    task.refresh_from_db()
    assert task.status == status


def in_line(tenant: Tenant, length: int) -> list[Task]:
    tasks = [run_of(tenant) for _ in range(length)]
    Task.unscoped.filter(pk__in=[task.pk for task in tasks]).update(serial_key="k", status="pending")
    return [Task.unscoped.get(pk=task.pk) for task in tasks]


def test_a_retry_stands_at_the_end_of_its_line(committed_tenant: Tenant) -> None:
    first, second = in_line(committed_tenant, 2)
    Task.unscoped.filter(pk=first.pk).update(status="failed")
    with tenant_scope(committed_tenant.pk):
        retried = execute(TaskRetryAction(task_id=first.pk))
    assert [task.pk for task in Task.open_of("k")] == [second.pk, retried.task_id]
    # The one that waited longer is published, the retry is not.
    assert [task.status for task in Task.open_of("k")] == ["queued", "pending"]
    assert Task.claim(retried.task_id, committed_tenant.pk, 60) is None
    claim(second).settle("completed")
    assert Task.claim(retried.task_id, committed_tenant.pk, 60) is not None


def test_a_retry_without_others_in_its_line_is_published(committed_tenant: Tenant) -> None:
    [task] = in_line(committed_tenant, 1)
    Task.unscoped.filter(pk=task.pk).update(status="failed")
    with tenant_scope(committed_tenant.pk):
        retried = execute(TaskRetryAction(task_id=task.pk))
    assert Task.unscoped.get(pk=retried.task_id).status == "queued"


def test_the_next_of_the_line_follows_a_task_that_is_cancelled(committed_tenant: Tenant) -> None:
    first, second = in_line(committed_tenant, 2)
    with tenant_scope(committed_tenant.pk):
        assert execute(TaskCancelAction(task_id=first.pk)).status == "cancelled"
    assert Task.unscoped.get(pk=second.pk).status == "queued"


def test_a_task_whose_worker_gives_it_back_just_now_is_cancelled_all_the_same(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = claim(run_of(committed_tenant))
    ask_to_cancel = Task.ask_to_cancel

    def too_late(task_id: Any, by: str) -> bool:
        task.give_back()
        return ask_to_cancel(task_id, by)

    monkeypatch.setattr(Task, "ask_to_cancel", too_late)
    with tenant_scope(committed_tenant.pk):
        assert execute(TaskCancelAction(task_id=task.pk)).status == "cancelled"


def test_a_cancel_that_is_rolled_back_tells_nobody(committed_tenant: Tenant) -> None:
    task = run_of(committed_tenant, "processing")
    name = begin(task)
    with tenant_scope(committed_tenant.pk), pytest.raises(ZeroDivisionError), transaction.atomic():
        assert execute(TaskCancelAction(task_id=task.pk)).status == "cancelling"
        raise ZeroDivisionError
    task.refresh_from_db()
    assert task.status == "processing"
    assert aio.run(log.read(name, 1)) == []


@pytest.mark.parametrize("status", sorted(set(TaskStatus.values) - set(FINAL)))
def test_what_has_not_ended_cannot_be_retried(tenant: Tenant, status: str) -> None:
    task = run_of(tenant, status)
    with tenant_scope(tenant.pk), pytest.raises(CannotRetry), transaction.atomic():
        execute(TaskRetryAction(task_id=task.pk))
    assert Task.unscoped.count() == 1


def test_the_question_of_a_retry_is_the_first_tasks(tenant: Tenant) -> None:
    first = run_of(tenant, "failed")
    task = first
    with tenant_scope(tenant.pk):
        assert task_origin(first) == first.pk
        for _ in range(3):
            task = Task.objects.get(pk=execute(TaskRetryAction(task_id=task.pk)).task_id)
            Task.objects.filter(pk=task.pk).update(status="failed")
            assert task_origin(task) == first.pk


def test_a_task_without_a_callback_is_cancelled_in_silence(tenant: Tenant) -> None:
    task = make_task(tenant, status="processing", session_id="s-silent")
    with tenant_scope(tenant.pk):
        assert execute(TaskCancelAction(task_id=task.pk)).status == "cancelling"
    assert aio.run(log.read(session_name(tenant.pk, "s-silent"), 0)) == []


def test_a_created_key_works_and_is_shown_once(tenant: Tenant) -> None:
    with tenant_scope(tenant.pk):
        created = execute(ApiKeyCreateAction(name="  ci  ", scopes=("agents:read", "chat:write")))
    key = ApiKey.verify(created.key)
    assert key is not None
    assert (key.pk, key.tenant_id, key.name) == (created.row_id, tenant.pk, "ci")
    assert key.scopes == ["agents:read", "chat:write"]


@pytest.mark.parametrize("scopes", [(), ("agents",), ("agents:admin",), ("*",)])
def test_scopes_are_known_words(scopes: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        ApiKeyCreateAction(name="ci", scopes=scopes)


def test_a_revoked_key_is_revoked_for_good(tenant: Tenant) -> None:
    key, text = make_key(tenant)
    with tenant_scope(tenant.pk):
        execute(ApiKeyRevokeAction(row_id=key.pk))
        key.refresh_from_db()
        first = key.revoked_at
        execute(ApiKeyRevokeAction(row_id=key.pk))
    key.refresh_from_db()
    assert first is not None
    assert key.revoked_at == first
    assert ApiKey.verify(text) is None


def test_another_tenants_key_does_not_exist(tenant: Tenant) -> None:
    key, text = make_key(tenant)
    with tenant_scope(make_tenant().pk), pytest.raises(NotFound), transaction.atomic():
        execute(ApiKeyRevokeAction(row_id=key.pk))
    assert ApiKey.verify(text) == key
