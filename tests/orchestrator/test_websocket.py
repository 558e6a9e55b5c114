"""What the queue tells sockets."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from pydantic import ValidationError

from core import aio, valkey
from core.actions.bus import execute
from core.actions.tasks import TaskCancelAction
from core.actions.worker import run_task
from core.events import log
from core.events.groups import session_name
from core.models import Task, Tenant
from core.tenancy import tenant_scope
from execution.handlers import runs as handlers
from orchestrator.actions import WebSocketBroadcastAction, WebSocketSendAction
from tests.factories import make_agent, make_run, make_session, make_tenant


def entries_of(tenant_id: str, session_id: str) -> list[tuple[int, bytes]]:
    """Not by log.read: a session without a log of its own begins far above 0, and that is a hole."""
    entries: Any = valkey.client().xrange(f"nooble:log:{{{session_name(tenant_id, session_id)}}}")
    return [(int(entry_id.split(b"-")[0]), fields[b"e"]) for entry_id, fields in entries]


def events_in(tenant_id: str, session_id: str) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in entries_of(tenant_id, session_id)]


def names_of(task: Task) -> list[str]:
    names = [event["event"] for event in events_in(task.tenant_id, task.session_id)]
    return [name for name in names if name != "agent_response_token"]


def tell(task: Task) -> None:
    """The callback of the task, done once more."""
    with tenant_scope(task.tenant_id):
        execute(WebSocketSendAction(session_id=task.session_id, task_id=task.pk))


def ended(tenant: Tenant, **config: Any) -> Task:
    task = make_run(make_session(make_agent(tenant, **config)), "Hello?")
    run_task(str(task.pk), tenant.pk)
    task.refresh_from_db()
    return task


@pytest.fixture
def silent_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies between settling a run and telling of it."""
    monkeypatch.setattr(handlers, "_announce", lambda run, outcome, status: None)


def test_the_callback_adds_the_tasks_end_to_the_runs(committed_tenant: Tenant) -> None:
    task = ended(committed_tenant)
    assert names_of(task) == ["agent_execution_started", "agent_execution_completed"]
    tell(task)
    assert names_of(task) == ["agent_execution_started", "agent_execution_completed", "task_completed"]
    last = events_in(task.tenant_id, task.session_id)[-1]
    assert (last["service"], last["data"]) == ("agent-orchestrator", task.result)
    assert last["task_id"] == last["global_task_id"] == str(task.pk)


@pytest.mark.usefixtures("silent_worker")
def test_the_callback_tells_the_runs_end_too_when_nobody_has(committed_tenant: Tenant) -> None:
    task = ended(committed_tenant)
    assert names_of(task) == ["agent_execution_started"]
    tell(task)
    assert names_of(task) == ["agent_execution_started", "agent_execution_completed", "task_completed"]
    run_end, task_end = events_in(task.tenant_id, task.session_id)[-2:]
    assert run_end["data"] == task_end["data"] == task.result


@pytest.mark.parametrize("kind", ["completed", "failed", "cancelled"])
def test_done_twice_it_changes_nothing(committed_tenant: Tenant, kind: str) -> None:
    config = {"provider": "openai", "model": "gpt-4.1-mini"} if kind == "failed" else {}
    if kind == "cancelled":
        task = make_run(make_session(make_agent(committed_tenant)), "Hello?")
        Task.cancel_unstarted(task.pk, "ada")
        task.refresh_from_db()
    else:
        task = ended(committed_tenant, **config)
    assert task.status == kind
    tell(task)
    before = events_in(task.tenant_id, task.session_id)
    tell(task)
    tell(task)
    assert events_in(task.tenant_id, task.session_id) == before


@pytest.mark.parametrize("told", [True, False])
def test_a_failed_task(committed_tenant: Tenant, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not told:
        monkeypatch.setattr(handlers, "_announce", lambda run, outcome, status: None)
    task = ended(committed_tenant, provider="openai", model="gpt-4.1-mini")
    tell(task)
    assert names_of(task) == ["agent_execution_started", "agent_execution_failed", "task_failed"]
    run_end, task_end = events_in(task.tenant_id, task.session_id)[-2:]
    expected = {"error": task.error["message"], "error_type": "ProviderNotConfigured"}
    assert run_end["data"] == task_end["data"] == expected


def test_a_task_cancelled_before_it_began_has_one_event(committed_tenant: Tenant) -> None:
    task = make_run(make_session(make_agent(committed_tenant)), "Hello?")
    with tenant_scope(committed_tenant.pk):
        execute(TaskCancelAction(task_id=task.pk, by="ada"))
    task.refresh_from_db()
    tell(task)
    [event] = events_in(task.tenant_id, task.session_id)
    assert event["event"] == "task_status_update"
    assert event["data"] == {
        "status": "cancelled",
        "details": {"cancelled_at": task.cancelled_at.isoformat(), "cancelled_by": "ada"},
    }


@pytest.mark.usefixtures("silent_worker")
def test_a_cancelled_run_ends_with_its_text_and_then_cancelled(committed_tenant: Tenant) -> None:
    task = ended(committed_tenant)
    Task.unscoped.filter(pk=task.pk).update(status="cancelled", cancelled_by="ada")
    tell(task)
    assert names_of(task) == ["agent_execution_started", "agent_execution_completed", "task_status_update"]
    run_end, task_end = events_in(task.tenant_id, task.session_id)[-2:]
    assert run_end["data"]["finish_reason"] == "cancelled"
    assert run_end["data"]["text"] == task.result["text"]
    assert task_end["data"]["status"] == "cancelled"


def test_seqs_are_dense_over_run_and_callback(committed_tenant: Tenant) -> None:
    task = ended(committed_tenant)
    tell(task)
    entries = entries_of(task.tenant_id, task.session_id)
    first = entries[0][0]
    assert [seq for seq, _ in entries] == list(range(first, first + len(entries)))


def test_another_tenants_task_is_not_told(committed_tenant: Tenant) -> None:
    task, other = ended(committed_tenant), make_tenant()
    heard = events_in(committed_tenant.pk, task.session_id)
    with tenant_scope(other.pk):
        execute(WebSocketSendAction(session_id=task.session_id, task_id=task.pk))
    assert events_in(committed_tenant.pk, task.session_id) == heard
    assert events_in(other.pk, task.session_id) == []


def test_a_broadcast_to_sessions_is_kept_in_their_logs_of_this_tenant_only(tenant: Tenant) -> None:
    sessions = [f"s-{uuid.uuid4().hex}" for _ in range(3)]
    with tenant_scope(tenant.pk):
        execute(WebSocketBroadcastAction(event="notice", data={"n": 1}, session_ids=tuple(sessions[:2])))
    for session in sessions[:2]:
        [event] = events_in(tenant.pk, session)
        assert (event["event"], event["data"], event["session_id"]) == ("notice", {"n": 1}, session)
        assert (event["tenant_id"], event["task_id"]) == (tenant.pk, None)
    assert events_in(tenant.pk, sessions[2]) == []
    assert events_in("demo", sessions[0]) == []


def test_a_broadcast_to_a_tenant_is_kept_in_no_log(tenant: Tenant) -> None:
    with tenant_scope(tenant.pk):
        execute(WebSocketBroadcastAction(event="notice", data={}))
    assert aio.run(log.last_seq(session_name(tenant.pk, ""))) is None


@pytest.mark.parametrize(
    "field",
    [{"event": "Not A Name"}, {"event": ""}, {"session_ids": []}, {"session_ids": ["a:b"]}, {"data": []}],
)
def test_broadcasts_that_do_not_fit(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WebSocketBroadcastAction(**{"event": "notice", "data": {}} | field)
