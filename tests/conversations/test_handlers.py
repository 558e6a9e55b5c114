"""The rules of conversations."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import IntegrityError, connection, transaction

from agents.models import Agent
from conversations.actions import ConversationAppendAction, ConversationOpenAction, OpenedSession
from conversations.errors import SessionBound
from conversations.models import Message, Session
from core.actions.bus import execute
from core.models import Tenant
from core.tenancy import NoTenantScope, tenant_scope
from tests.factories import make_agent, make_message, make_session, make_task, make_tenant


def open_session(agent: Agent, key: str, user_id: str = "") -> OpenedSession:
    with tenant_scope(agent.tenant_id):
        return execute(ConversationOpenAction(session_id=key, agent_id=agent.pk, user_id=user_id))


def test_the_first_message_begins_the_session_and_the_next_ones_find_it(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    first = open_session(agent, "s", "ada")
    assert first.created
    again = open_session(agent, "s", "somebody else")
    assert (again.row_id, again.created) == (first.row_id, False)
    session = Session.unscoped.get(pk=first.row_id)
    assert (session.key, session.agent_id, session.user_id, session.tenant_id) == (
        "s",
        agent.pk,
        "ada",
        tenant.pk,
    )
    assert session.created_at is not None


def test_two_first_messages_at_once_make_one_session(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    rivals = 6
    barrier = Barrier(rivals)

    def first(number: int) -> list[OpenedSession]:
        try:
            opened = []
            for key in range(5):
                barrier.wait(timeout=30)
                opened.append(open_session(agent, f"s-{key}", str(number)))
            return opened
        finally:
            connection.close()

    with ThreadPoolExecutor(rivals) as threads:
        rounds = list(zip(*threads.map(first, range(rivals)), strict=True))
    for opened in rounds:
        assert len({session.row_id for session in opened}) == 1
        assert sum(session.created for session in opened) == 1
    assert Session.unscoped.count() == 5


def test_the_second_of_two_first_messages_waits_for_the_firsts_end(committed_tenant: Tenant) -> None:
    """And begins the session itself when the first one failed."""
    agent = make_agent(committed_tenant)

    def second() -> OpenedSession:
        try:
            return open_session(agent, "s")
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            assert open_session(agent, "s").created
            waiting = threads.submit(second)
            raise ZeroDivisionError
        assert waiting.result(timeout=30).created
    assert Session.unscoped.count() == 1


def test_another_agent_on_a_session_is_refused(tenant: Tenant) -> None:
    open_session(make_agent(tenant), "s")
    with pytest.raises(SessionBound) as refused, transaction.atomic():
        open_session(make_agent(tenant), "s")
    assert refused.value.http_status == 409


def test_tenants_may_use_the_same_session_id(tenant: Tenant) -> None:
    mine = open_session(make_agent(tenant), "s")
    theirs = open_session(make_agent(make_tenant()), "s")
    assert theirs.created
    assert mine.row_id != theirs.row_id


def test_no_session_without_a_tenant(db: None) -> None:
    with pytest.raises(NoTenantScope), transaction.atomic():
        execute(ConversationOpenAction(session_id="s", agent_id=uuid.uuid4()))


def test_a_message_is_kept_as_it_was_said(tenant: Tenant) -> None:
    session, task = make_session(make_agent(tenant)), make_task(tenant)
    text = "¿Qué tal? 🎈\n\u2028 " + "x" * 32_000
    with tenant_scope(tenant.pk):
        appended = execute(
            ConversationAppendAction(
                session_row_id=session.pk,
                task_id=task.pk,
                role="assistant",
                text=text,
                seq=7,
                finish_reason="stop",
            )
        )
    message = Message.unscoped.get(pk=appended.message_id)
    assert (message.tenant_id, message.session_id, message.task_id) == (tenant.pk, session.pk, task.pk)
    assert (message.role, message.text, message.seq, message.finish_reason) == ("assistant", text, 7, "stop")


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_task_has_one_question_and_one_answer(tenant: Tenant, role: str) -> None:
    session, task = make_session(make_agent(tenant)), make_task(tenant)
    make_message(session, role, "once", task)
    with pytest.raises(IntegrityError), transaction.atomic(), tenant_scope(tenant.pk):
        execute(
            ConversationAppendAction(
                session_row_id=session.pk, task_id=task.pk, role=role, text="twice", seq=0
            )
        )
    make_message(session, "assistant" if role == "user" else "user", "the other", task)
    make_message(session, role, "another task's", make_task(tenant))
