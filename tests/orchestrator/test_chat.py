"""Chat: send, look, stop."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
import redis
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pydantic import ValidationError

from agents.errors import AgentNotFound
from agents.models import Agent
from conversations.errors import SessionBound
from conversations.models import Message, Session
from core import aio, valkey
from core.actions.bus import execute
from core.actions.worker import run_task
from core.errors import CannotCancel, TaskNotFound
from core.events import log
from core.events.groups import session_name
from core.ids import is_session_id
from core.models import Task, Tenant
from core.tenancy import NoTenantScope, tenant_scope
from orchestrator.access import Resume
from orchestrator.actions import (
    ChatCancelTaskAction,
    ChatGetStatusAction,
    ChatMessageBody,
    ChatMessageSent,
    ChatSendMessageAction,
    TaskCancelled,
    TaskState,
)
from orchestrator.events import Broadcast
from orchestrator.handlers import chat
from tests.factories import make_agent, make_task, make_tenant


def send(agent: Agent, message: str = "Hello?", **fields: Any) -> ChatMessageSent:
    with tenant_scope(agent.tenant_id):
        return execute(ChatSendMessageAction(agent_id=agent.pk, message=message, **fields))


def status(tenant: Tenant, task_id: object) -> TaskState:
    with tenant_scope(tenant.pk):
        return execute(ChatGetStatusAction(task_id=str(task_id)))


def cancel(tenant: Tenant, task_id: object, **fields: Any) -> TaskCancelled:
    with tenant_scope(tenant.pk):
        return execute(ChatCancelTaskAction(task_id=str(task_id), **fields))


def test_a_first_message_begins_a_session_and_a_run(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    sent = send(agent, user_info={"user_id": "ada", "name": "Ada"}, metadata={"page": 7})
    assert is_session_id(sent.session_id)
    assert len(sent.session_id) == 22
    assert (sent.status, sent.estimated_time) == ("pending", 8.0)
    assert sent.queue == f"agent:{tenant.pk}:execute:normal"
    assert sent.websocket_url == f"/ws/{tenant.pk}/{sent.session_id}"
    session = Session.unscoped.get(key=sent.session_id)
    assert (session.tenant_id, session.agent_id, session.user_id) == (tenant.pk, agent.pk, "ada")
    question = Message.unscoped.get(session=session)
    assert (question.role, question.text, question.task_id, question.seq) == (
        "user",
        "Hello?",
        sent.task_id,
        0,
    )
    task = Task.unscoped.get(pk=sent.task_id)
    assert (task.action, task.agent_id, task.session_id) == ("agent.execute", agent.pk, sent.session_id)
    assert task.payload["metadata"] == {"page": 7}
    assert task.payload["version_id"] == agent.version_id
    assert task.callback == {
        "action": "websocket.send_message",
        "payload": {"session_id": sent.session_id, "task_id": str(task.pk)},
    }


def test_only_the_message_that_begins_a_session_gets_its_token(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    first = send(agent)
    assert first.resume_token is not None
    assert Resume.verify(first.resume_token, tenant.pk, first.session_id) == Resume(
        tenant.pk, first.session_id, 0
    )
    second = send(agent, session_id=first.session_id)
    assert second.session_id == first.session_id
    assert "resume_token" not in second.model_dump(exclude_unset=True)


def happen(tenant: Tenant, session_id: str, floor: int = 0) -> int | None:
    event = Broadcast(
        event="note",
        task_id=None,
        global_task_id=None,
        tenant_id=tenant.pk,
        session_id=session_id,
        data={},
    )
    return aio.run(log.append(event, floor=floor))


def lose_log(tenant: Tenant, session_id: str) -> None:
    name = session_name(tenant.pk, session_id)
    assert valkey.client().delete(log._log(name), log._marks(name))


def test_a_question_remembers_where_the_log_stood(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    sent = send(agent)
    assert [happen(tenant, sent.session_id) for _ in range(3)] == [1, 2, 3]
    again = send(agent, session_id=sent.session_id)
    assert Message.unscoped.get(task=again.task_id).seq == 3


def test_a_question_after_the_log_was_lost_stands_far_above_the_session(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    session_id = send(agent).session_id
    happen(tenant, session_id)
    second = send(agent, session_id=session_id)
    given = [happen(tenant, session_id) for _ in range(3)]
    lose_log(tenant, session_id)
    third = send(agent, session_id=session_id)
    question = Message.unscoped.get(task=third.task_id)
    floor = Message.unscoped.get(task=second.task_id).seq
    assert (floor, given, question.seq) == (1, [2, 3, 4], floor + log.GAP)
    assert happen(tenant, session_id, floor) == floor + log.GAP + 1
    # The same again: what was given above the gap is below the next one.
    lose_log(tenant, session_id)
    fourth = send(agent, session_id=session_id)
    assert Message.unscoped.get(task=fourth.task_id).seq == question.seq + log.GAP


def test_a_lost_log_of_a_session_whose_only_question_stands_at_zero(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    session_id = send(agent).session_id
    given = [happen(tenant, session_id) for _ in range(3)]
    lose_log(tenant, session_id)
    again = send(agent, session_id=session_id)
    assert Message.unscoped.get(task=again.task_id).seq > max(seq or 0 for seq in given)


def test_while_valkey_is_away_a_question_stands_where_the_last_message_does(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(tenant)
    session_id = send(agent).session_id
    happen(tenant, session_id)
    send(agent, session_id=session_id)

    def away(name: str) -> int:
        raise redis.ConnectionError

    monkeypatch.setattr(chat, "last_seq_sync", away)
    third = send(agent, session_id=session_id)
    assert Message.unscoped.get(task=third.task_id).seq == 1


@pytest.mark.parametrize(
    ("asked", "given", "word"), [("low", 1, "low"), ("high", 4, "normal"), (9, 4, "normal"), (0, 0, "low")]
)
def test_the_tier_caps_the_priority(db: None, asked: object, given: int, word: str) -> None:
    tenant = make_tenant(priority_ceiling=4)
    sent = send(make_agent(tenant), priority=asked)
    assert Task.unscoped.get(pk=sent.task_id).priority == given
    assert sent.queue == f"agent:{tenant.pk}:execute:{word}"


def test_after_the_commit_the_message_is_queued(committed_tenant: Tenant) -> None:
    assert send(make_agent(committed_tenant)).status == "queued"


def test_another_agent_on_the_session_is_refused_and_nothing_is_left(committed_tenant: Tenant) -> None:
    first = send(make_agent(committed_tenant))
    with pytest.raises(SessionBound):
        send(make_agent(committed_tenant), session_id=first.session_id)
    assert Task.unscoped.count() == Message.unscoped.count() == 1


def test_agents_that_answer_nobody(tenant: Tenant) -> None:
    for agent_id in (uuid.uuid4(), make_agent(tenant, draft=True).pk):
        with tenant_scope(tenant.pk), pytest.raises(AgentNotFound):
            execute(ChatSendMessageAction(agent_id=agent_id, message="Hello?"))


def test_another_tenants_agent_does_not_exist(tenant: Tenant) -> None:
    foreign = make_agent(make_tenant())
    with tenant_scope(tenant.pk), pytest.raises(AgentNotFound), transaction.atomic():
        execute(ChatSendMessageAction(agent_id=foreign.pk, message="Hello?"))
    assert not Task.unscoped.exists()


def test_nobody_speaks_without_a_tenant(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    with pytest.raises(NoTenantScope):
        execute(ChatSendMessageAction(agent_id=agent.pk, message="Hello?"))


@pytest.mark.parametrize(
    "field",
    [
        {"message": ""},
        {"message": "x" * 32_769},
        {"message": None},
        {"agent_id": "demo"},
        {"session_id": "a:b"},
        {"session_id": ""},
        {"session_id": "x" * 65},
        {"tenant_id": "_system"},
        {"priority": "urgent"},
        {"priority": "5"},
        {"priority": 10},
        {"priority": -1},
        {"priority": None},
        {"priority": []},
        {"priority": {}},
        {"priority": 1.5},
        {"priority": True},
        {"user_info": {"user_id": "x" * 256}},
        {"user_info": []},
        {"metadata": []},
        {"surprise": 1},
    ],
    ids=lambda field: str(field)[:40],
)
def test_bodies_that_do_not_fit(field: dict[str, Any]) -> None:
    ChatMessageBody(agent_id=uuid.uuid4(), message="x" * 32_768)
    with pytest.raises(ValidationError):
        ChatMessageBody(**{"agent_id": uuid.uuid4(), "message": "Hello?"} | field)


def test_a_waiting_tasks_status(tenant: Tenant) -> None:
    sent = send(make_agent(tenant))
    state = status(tenant, sent.task_id)
    assert (state.task_id, state.session_id, state.status, state.attempt) == (
        sent.task_id,
        sent.session_id,
        "pending",
        0,
    )
    assert (state.started_at, state.finished_at, state.output, state.error) == (None, None, None, None)


def test_an_answered_tasks_status(committed_tenant: Tenant) -> None:
    sent = send(make_agent(committed_tenant), "one two")
    run_task(str(sent.task_id), committed_tenant.pk)
    state = status(committed_tenant, sent.task_id)
    assert (state.status, state.attempt, state.error) == ("completed", 1, None)
    assert state.output is not None
    assert state.output.text == "one two"
    assert state.started_at is not None
    assert state.finished_at is not None
    assert state.created_at <= state.started_at <= state.finished_at


def test_a_turn_of_an_agent_that_has_not_changed_reads_nothing_of_it(committed_tenant: Tenant) -> None:
    """Whoever asks: what the processes have in mind is enough, from the message to the answer."""
    agent = make_agent(committed_tenant, instructions="You are {{agent_name}}.")
    run_task(str(send(agent).task_id), committed_tenant.pk)
    with CaptureQueriesContext(connection) as queries:
        sent = send(agent)
        run_task(str(sent.task_id), committed_tenant.pk)
    assert status(committed_tenant, sent.task_id).status == "completed"
    assert len(queries) > 0
    read = [query["sql"] for query in queries if re.search(r'FROM "agents_|JOIN "agents_', query["sql"])]
    assert read == []


def test_a_failed_tasks_status(committed_tenant: Tenant) -> None:
    sent = send(make_agent(committed_tenant, provider="openai", model="gpt-4.1-mini"))
    run_task(str(sent.task_id), committed_tenant.pk)
    state = status(committed_tenant, sent.task_id)
    assert (state.status, state.output) == ("failed", None)
    assert state.error is not None
    assert state.error["type"] == "ProviderNotConfigured"


@pytest.mark.parametrize("look", [status, cancel])
def test_tasks_that_do_not_exist_for_the_caller(tenant: Tenant, look: Any) -> None:
    other = send(make_agent(make_tenant())).task_id
    no_chat = make_task(tenant).pk
    for task_id in (other, no_chat, uuid.uuid4(), "x", "", "\x00"):
        with pytest.raises(TaskNotFound):
            look(tenant, task_id)
    assert Task.unscoped.get(pk=other).status == "pending"


def test_a_waiting_task_is_cancelled_by_name(tenant: Tenant) -> None:
    sent = send(make_agent(tenant))
    cancelled = cancel(tenant, sent.task_id, user_id="ada")
    assert (cancelled.task_id, cancelled.status, cancelled.message) == (
        sent.task_id,
        "cancelled",
        "Task cancelled successfully",
    )
    assert Task.unscoped.get(pk=sent.task_id).cancelled_by == "ada"


def test_a_cancel_without_a_name_is_the_systems(tenant: Tenant) -> None:
    sent = send(make_agent(tenant))
    cancel(tenant, sent.task_id)
    assert Task.unscoped.get(pk=sent.task_id).cancelled_by == "system"


def test_a_running_task_is_cancelling_unless_only_queued_ones_were_meant(tenant: Tenant) -> None:
    sent = send(make_agent(tenant))
    Task.claim(sent.task_id, tenant.pk, 60)
    with pytest.raises(CannotCancel) as refused:
        cancel(tenant, sent.task_id, only_if_queued=True)
    assert refused.value.details == {"status": "processing"}
    assert cancel(tenant, sent.task_id).status == "cancelling"
    with pytest.raises(CannotCancel):
        cancel(tenant, sent.task_id)


@pytest.mark.parametrize("ended", ["completed", "failed", "cancelled"])
def test_an_ended_task_cannot_be_cancelled(tenant: Tenant, ended: str) -> None:
    sent = send(make_agent(tenant))
    Task.unscoped.filter(pk=sent.task_id).update(status=ended)
    with pytest.raises(CannotCancel) as refused:
        cancel(tenant, sent.task_id)
    assert refused.value.http_status == 409
    assert refused.value.details == {"status": ended}


def test_a_sender_is_served_though_the_task_is_not_marked_as_queued(
    committed_tenant: Tenant, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mark_queued(task_id: uuid.UUID) -> bool:
        raise OperationalError("gone")

    monkeypatch.setattr(Task, "mark_queued", mark_queued)
    body = {"agent_id": str(make_agent(committed_tenant).pk), "message": "Hello?"}
    response = client.post("/api/v1/chat/message", body, content_type="application/json")
    assert response.status_code == 202
    assert response.json()["result"]["status"] == "pending"
    assert Task.unscoped.get().status == "pending"
