"""A session as a whole: begun, changed, closed, deleted."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
import redis
from django.db import connection, transaction

from agents.errors import AgentNotFound
from conversations import erasing
from conversations.actions import (
    ConversationOpenAction,
    SessionCloseAction,
    SessionCreateAction,
    SessionDeleteAction,
    SessionDeleteOfUserAction,
    SessionEraseAction,
    SessionResource,
    SessionUpdateAction,
)
from conversations.errors import SessionClosed, SessionExists, SessionNotFound
from conversations.fields import LONGEST_CONTEXT, MOST_VARIABLES, title_of
from conversations.handlers.sessions import locked
from conversations.models import Message, Session
from conversations.selectors import session_get, session_messages, session_seq
from core import aio, valkey
from core.actions.base import Action
from core.actions.bus import execute
from core.actions.worker import run_task
from core.errors import ValidationFailed
from core.events import log
from core.events.groups import session_name
from core.events.tasks import StatusUpdate, TaskStatusUpdate, envelope_of
from core.ids import is_session_id
from core.models import AuditEntry, Task, Tenant, UsageRecord
from core.tenancy import tenant_scope
from tests.factories import claim, make_agent, make_message, make_run, make_session, make_task, make_tenant


def do(tenant: Tenant, action: Action[Any]) -> Any:
    with tenant_scope(tenant.pk):
        return execute(action)


def say(session: Session) -> None:
    with tenant_scope(session.tenant_id):
        execute(ConversationOpenAction(session_id=session.key, agent_id=session.agent_id))


def events(session: Session) -> list[dict[str, Any]]:
    read = aio.run(log.read(session_name(session.tenant_id, session.key), 0))
    return [orjson.loads(body) for _seq, body in read]


def append(task: Task, floor: int | None = 1) -> int | None:
    """As a worker tells what it does."""
    data = StatusUpdate(status="waiting", details={})
    return aio.run(log.append(TaskStatusUpdate(**envelope_of(task), data=data), floor=floor))


def keys_of(session: Session) -> list[bytes]:
    return sorted(valkey.client().keys(f"nooble:*{session_name(session.tenant_id, session.key)}*"))


# --- Begun and changed ---------------------------------------------------------------------------------


def test_a_session_can_begin_before_anybody_speaks(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    made: SessionResource = do(
        tenant,
        SessionCreateAction(
            agent_id=agent.pk,
            title=" Order 7 ",
            user_info={"user_id": "ada", "name": "Ada"},
            context={"order": "7"},
        ),
    )
    assert is_session_id(made.session_id)
    assert (made.state, made.title, made.context) == ("created", "Order 7", {"order": "7"})
    assert made.user_info == {"user_id": "ada", "name": "Ada"}
    assert made.ended_at is None
    session = Session.unscoped.get(key=made.session_id)
    assert session.user_id == "ada"
    say(session)
    session.refresh_from_db()
    assert (session.state, session.title) == ("active", "Order 7")


def test_a_session_begins_once(tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    with pytest.raises(SessionExists), transaction.atomic():
        do(tenant, SessionCreateAction(agent_id=session.agent_id, session_id=session.key))
    theirs = make_agent(make_tenant())
    do(theirs.tenant, SessionCreateAction(agent_id=theirs.pk, session_id=session.key))


def test_a_session_needs_an_agent_of_its_tenants_that_answers(tenant: Tenant) -> None:
    for agent_id in (uuid.uuid4(), make_agent(tenant, draft=True).pk, make_agent(make_tenant()).pk):
        with pytest.raises(AgentNotFound), transaction.atomic():
            do(tenant, SessionCreateAction(agent_id=agent_id))
    assert not Session.unscoped.exists()


@pytest.mark.parametrize(
    "context",
    [
        {"Upper": "x"},
        {"": "x"},
        {"a" * 33: "x"},
        {"line\n": "x"},
        {"user_id": "x"},
        {"order": 7},
        {"order": None},
        {"order": ["x"]},
        {f"{'a' * (number // 26)}{chr(97 + number % 26)}": "" for number in range(MOST_VARIABLES + 1)},
        {"order": "x" * (LONGEST_CONTEXT - 4)},
        {"order": "ñ" * (LONGEST_CONTEXT // 2)},
    ],
    ids=lambda context: str(context)[:30],
)
def test_context_that_is_none(context: dict[str, Any]) -> None:
    SessionCreateAction(agent_id=uuid.uuid4(), context={"order": "x" * (LONGEST_CONTEXT - 5)})
    with pytest.raises(ValueError):
        SessionCreateAction(agent_id=uuid.uuid4(), context=context)


def test_variables_are_set_and_removed_one_by_one(tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))

    def change(**fields: Any) -> SessionResource:
        changed: SessionResource = do(tenant, SessionUpdateAction(session_id=session.key, **fields))
        return changed

    assert change(context={"a": "1", "b": "2"}).context == {"a": "1", "b": "2"}
    assert change(context={"a": None, "c": "3", "d": None}, title="T").context == {"b": "2", "c": "3"}
    assert change(title="").title == ""
    session.refresh_from_db()
    assert (session.title, session.context) == ("", {"b": "2", "c": "3"})
    with pytest.raises(ValidationFailed) as refused, transaction.atomic():
        change(context={"e": "x" * (LONGEST_CONTEXT - 3)})
    assert set(refused.value.details) == {"context"}
    with pytest.raises(SessionNotFound), transaction.atomic():
        do(make_tenant(), SessionUpdateAction(session_id=session.key, title="Mine"))


def test_the_record_says_what_has_changed_and_not_to_what(tenant: Tenant) -> None:
    """It outlives the session, and the person's right to have it deleted."""
    session = make_session(make_agent(tenant))
    do(tenant, SessionUpdateAction(session_id=session.key, title="Divorce", context={"name": "Ada"}))
    do(tenant, SessionUpdateAction(session_id=session.key, title="Divorce", context={"name": "Ada"}))
    entry = AuditEntry.unscoped.get(verb="session.update")
    assert (entry.object_type, entry.object_id) == ("session", session.key)
    assert (entry.before, entry.after) == ({}, {"changed": ["title", "context.name"]})


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("Hello", "Hello"),
        ("  many\n\n words\t", "many words"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 79 + "…"),
        ("word " * 100, "word " * 15 + "word…"),
        (" ", ""),
    ],
    ids=lambda text: str(text)[:12],
)
def test_a_title_is_the_beginning_of_the_first_message(message: str, title: str) -> None:
    assert title_of(message) == title


# --- Closed --------------------------------------------------------------------------------------------


def test_a_closed_session_takes_no_message_and_tells_it(committed_tenant: Tenant) -> None:
    session = make_session(make_agent(committed_tenant))
    closed: SessionResource = do(committed_tenant, SessionCloseAction(session_id=session.key, by="key:x"))
    assert closed.state == "closed"
    assert closed.ended_at is not None
    with pytest.raises(SessionClosed):
        say(session)
    (told,) = events(session)
    assert (told["event"], told["service"], told["task_id"]) == ("session_closed", "agent-orchestrator", None)
    assert set(told["data"]) == {"ended_at"}
    again: SessionResource = do(committed_tenant, SessionCloseAction(session_id=session.key))
    assert again.ended_at == closed.ended_at
    assert len(events(session)) == 1
    assert AuditEntry.unscoped.filter(verb="session.close").count() == 1


def test_what_runs_in_a_closed_session_is_cancelled(committed_tenant: Tenant) -> None:
    session = make_session(make_agent(committed_tenant))
    first, second = (
        make_task(committed_tenant, session_id=session.key, serial_key=session.serial_key) for _ in range(2)
    )
    claim(first)
    do(committed_tenant, SessionCloseAction(session_id=session.key, by="ada"))
    rows = {task.pk: task for task in Task.unscoped.filter(serial_key=session.serial_key)}
    assert (rows[first.pk].status, rows[second.pk].status) == ("cancelling", "cancelled")
    assert rows[second.pk].cancelled_by == "ada"


def test_a_session_closes_while_valkey_is_away(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise redis.ConnectionError

    session = make_session(make_agent(committed_tenant))
    monkeypatch.setattr(log, "append", away)
    assert do(committed_tenant, SessionCloseAction(session_id=session.key)).state == "closed"


def test_a_message_and_a_close_at_once(committed_tenant: Tenant) -> None:
    """The close waits for the message that came first, and cancels what it has begun."""
    session = make_session(make_agent(committed_tenant))

    def close() -> str:
        try:
            return str(do(committed_tenant, SessionCloseAction(session_id=session.key)).state)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            say(session)
            closing = threads.submit(close)
            task = make_task(committed_tenant, session_id=session.key, serial_key=session.serial_key)
        assert closing.result(timeout=30) == "closed"
    assert Task.unscoped.get(pk=task.pk).status == "cancelled"


# --- Deleted -------------------------------------------------------------------------------------------


def lived(agent: Any, key: str | None = None, user_id: str = "ada") -> tuple[Session, Task]:
    """A session with a turn behind it."""
    session = make_session(agent, key)
    Session.unscoped.filter(pk=session.pk).update(user_id=user_id)
    session.refresh_from_db()
    task = make_task(
        agent.tenant,
        session_id=session.key,
        serial_key=session.serial_key,
        status="completed",
        result={"text": "Hi"},
    )
    make_message(session, "user", "Hello", task, seq=0)
    make_message(session, "assistant", "Hi", task, seq=3)
    UsageRecord.unscoped.create(
        tenant=agent.tenant,
        task=task,
        attempt=1,
        call=1,
        agent_id=agent.pk,
        session_id=session.key,
        end_user=user_id,
        provider="openai",
        model="m",
        prompt_tokens=7,
    )
    append(task)
    return session, task


def test_with_a_session_goes_all_that_belongs_to_it(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    session, task = lived(agent)
    callback = make_task(committed_tenant, session_id=session.key, action="websocket.send_message")
    other, others_task = lived(agent)
    namesake, namesakes_task = lived(make_agent(make_tenant()), session.key)
    do(committed_tenant, SessionDeleteAction(session_id=session.key, by="ada"))
    assert set(Session.unscoped.values_list("pk", flat=True)) == {other.pk, namesake.pk}
    assert Message.unscoped.count() == 4
    assert set(Task.unscoped.filter(pk__in=[task.pk, callback.pk, others_task.pk, namesakes_task.pk])) == {
        others_task,
        namesakes_task,
    }
    usage = UsageRecord.unscoped.get(tenant=committed_tenant, session_id="")
    assert (usage.end_user, usage.prompt_tokens, usage.task_id) == ("", 7, None)
    assert UsageRecord.unscoped.filter(end_user="ada").count() == 2
    assert valkey.client().hgetall(log._marks(session_name(committed_tenant.pk, session.key))) == {
        b"gone": b"1"
    }
    assert len(keys_of(session)) == 1
    assert len(events(other)) == len(events(namesake)) == 1
    entry = AuditEntry.unscoped.get(verb="session.delete")
    assert (entry.object_id, entry.actor) == (session.key, "system")
    assert set(entry.before) == {"agent_id", "created_at"}
    with pytest.raises(SessionNotFound):
        do(committed_tenant, SessionDeleteAction(session_id=session.key))


def test_a_foreign_session_is_not_deleted(tenant: Tenant) -> None:
    session, _task = lived(make_agent(make_tenant()))
    with pytest.raises(SessionNotFound), transaction.atomic():
        do(tenant, SessionDeleteAction(session_id=session.key))
    assert Session.unscoped.filter(pk=session.pk).exists()


def test_what_is_late_for_a_deleted_session_is_not_kept(committed_tenant: Tenant) -> None:
    session, task = lived(make_agent(committed_tenant))
    do(committed_tenant, SessionDeleteAction(session_id=session.key))
    assert append(task) is None
    assert len(keys_of(session)) == 1


def test_its_id_may_be_used_again(committed_tenant: Tenant) -> None:
    """With nothing of what was said under it before."""
    session, task = lived(make_agent(committed_tenant))
    do(committed_tenant, SessionDeleteAction(session_id=session.key))
    do(committed_tenant, SessionCreateAction(agent_id=session.agent_id, session_id=session.key))
    again = Session.unscoped.get(key=session.key)
    assert again.pk != session.pk
    assert log.last_seq_sync(session_name(committed_tenant.pk, session.key)) == 0
    assert append(make_task(committed_tenant, session_id=session.key)) == 1
    assert task.pk


def test_without_valkey_nothing_is_deleted(committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """All or nothing: its log is in Valkey, and whoever asked can ask again."""
    session, task = lived(make_agent(committed_tenant))

    def away(names: list[str]) -> None:
        raise redis.ConnectionError

    monkeypatch.setattr(log, "forget", away)
    with pytest.raises(redis.ConnectionError):
        do(committed_tenant, SessionDeleteAction(session_id=session.key))
    assert Message.unscoped.filter(session=session).count() == 2
    assert Task.unscoped.filter(pk=task.pk).exists()


def test_a_log_whose_session_was_not_deleted_after_all_goes_on(committed_tenant: Tenant) -> None:
    """Killed between Valkey and the commit."""
    session, task = lived(make_agent(committed_tenant))
    name = session_name(committed_tenant.pk, session.key)
    log.forget([name])
    assert append(task) is None
    assert log.last_seq_sync(name) is None
    # What a socket does leaves it as it is; what a message does, which holds the session, begins it anew.
    log.revive(name, 3)
    assert append(task) is None
    assert log.last_seq_sync(name) is None
    tail = log.revive(name, 3, sure=True)
    assert tail >= log.GAP
    assert append(task) == tail + 1


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What a higher floor was told to delete."""
    told: list[list[str]] = []
    monkeypatch.setattr(erasing, "belongings", [lambda keys: told.append(list(keys))])
    return told


def test_higher_floors_delete_what_is_theirs(tenant: Tenant, kept: list[list[str]]) -> None:
    session, _task = lived(make_agent(tenant))
    do(tenant, SessionDeleteAction(session_id=session.key))
    assert kept == [[session.key]]


def test_while_something_runs_the_session_is_empty_and_goes_behind_it(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    session, ended = lived(agent)
    Session.unscoped.filter(pk=session.pk).update(
        state="idle", title="T", user_info={"name": "Ada"}, context={"a": "b"}
    )
    running = make_run(session, "And now?")
    Task.unscoped.filter(pk=running.pk).update(serial_key=session.serial_key)
    running = claim(running)
    waiting = make_task(committed_tenant, session_id=session.key, serial_key=session.serial_key)
    do(committed_tenant, SessionDeleteAction(session_id=session.key))
    # Nothing of it can be seen, and nobody can speak in it.
    with tenant_scope(committed_tenant.pk):
        for look in (session_get, lambda key: session_messages(key, 0, 0, 10)):
            with pytest.raises(SessionNotFound):
                look(session.key)
        assert session_seq(session.key) is None
    with pytest.raises(SessionClosed):
        say(session)
    with pytest.raises(SessionExists):
        do(committed_tenant, SessionCreateAction(agent_id=agent.pk, session_id=session.key))
    husk = Session.unscoped.get(pk=session.pk)
    assert (husk.title, husk.user_id, husk.user_info, husk.context) == ("", "", {}, {})
    assert not Message.unscoped.filter(session=session).exists()
    assert not Task.unscoped.filter(pk__in=[ended.pk, waiting.pk]).exists()
    # The run's worker stops, and writes the text so far; then the rest goes.
    (rest,) = Task.unscoped.filter(action=SessionEraseAction.verb)
    assert rest.session_id == ""
    run_task(str(rest.pk), committed_tenant.pk)
    assert Session.unscoped.filter(pk=session.pk).exists()
    make_message(session, "assistant", "I was sayi", running)
    assert running.settle("completed", result={"text": "I was sayi"}) == "cancelled"
    run_task(str(rest.pk), committed_tenant.pk)
    assert not Session.unscoped.filter(pk=session.pk).exists()
    assert not Message.unscoped.exists()
    assert not Task.unscoped.filter(session_id=session.key).exists()
    assert Task.unscoped.get(pk=rest.pk).status == "completed"
    # A second time there is nothing to do.
    do(committed_tenant, SessionEraseAction(session_row_id=session.pk))


def test_the_rest_of_a_session_that_lives_is_none(tenant: Tenant) -> None:
    session, _task = lived(make_agent(tenant))
    do(tenant, SessionEraseAction(session_row_id=session.pk))
    assert Session.unscoped.filter(pk=session.pk).exists()


def test_all_sessions_of_one_person(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    for _ in range(3):
        lived(agent)
    other, _task = lived(agent, user_id="bob")
    # What ada said in bob's.
    UsageRecord.unscoped.filter(session_id=other.key).update(end_user="ada")
    foreign, _task = lived(make_agent(make_tenant()))
    done = do(committed_tenant, SessionDeleteOfUserAction(user_id="ada", by="key:x"))
    assert done.deleted == 3
    assert set(Session.unscoped.values_list("pk", flat=True)) == {other.pk, foreign.pk}
    assert not UsageRecord.unscoped.filter(tenant=committed_tenant, end_user="ada").exists()
    assert UsageRecord.unscoped.filter(tenant=foreign.tenant, end_user="ada").count() == 1
    assert do(committed_tenant, SessionDeleteOfUserAction(user_id="ada")).deleted == 0
    proofs = AuditEntry.unscoped.filter(object_type="end_user").order_by("pk")
    assert [entry.before for entry in proofs] == [{"sessions": 3}, {"sessions": 0}]
    assert "ada" not in {entry.object_id for entry in proofs}


def test_a_worker_that_settles_does_not_wait_for_who_holds_the_session(committed_tenant: Tenant) -> None:
    """It holds its task's row, which the other wants next: they would wait for each other."""
    session = make_session(make_agent(committed_tenant))
    task = make_task(committed_tenant, session_id=session.key, serial_key=session.serial_key)

    def settle() -> None:
        try:
            with tenant_scope(committed_tenant.pk), transaction.atomic():
                Task.unscoped.filter(pk=task.pk).update(status="completed")
                make_message(session, "assistant", "Hi", task)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads, transaction.atomic(), tenant_scope(committed_tenant.pk):
        locked(session.key)
        threads.submit(settle).result(timeout=20)


def test_two_deletes_at_once(committed_tenant: Tenant) -> None:
    session, _task = lived(make_agent(committed_tenant))

    def delete() -> str:
        try:
            do(committed_tenant, SessionDeleteAction(session_id=session.key))
        except SessionNotFound:
            return "not found"
        finally:
            connection.close()
        return "deleted"

    with ThreadPoolExecutor(2) as threads:
        outcomes = [future.result(timeout=30) for future in [threads.submit(delete) for _ in range(2)]]
    assert sorted(outcomes) == ["deleted", "not found"]


def test_a_message_that_waits_for_a_delete_begins_the_session_anew(committed_tenant: Tenant) -> None:
    session, _task = lived(make_agent(committed_tenant))

    def speak() -> bool:
        try:
            with tenant_scope(session.tenant_id):
                opened = execute(ConversationOpenAction(session_id=session.key, agent_id=session.agent_id))
            return opened.created
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            do(committed_tenant, SessionDeleteAction(session_id=session.key))
            speaking = threads.submit(speak)
        assert speaking.result(timeout=30)
