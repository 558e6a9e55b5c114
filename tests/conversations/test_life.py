"""The states of a session, and what time does to it."""

from __future__ import annotations

import datetime
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from conversations import rounds
from conversations.actions import ConversationOpenAction, OpenedSession
from conversations.errors import SessionClosed, SessionExpired
from conversations.models import EXPIRES_AFTER, IDLE_AFTER, Message, Session, SessionState
from core.actions.bus import execute
from core.models import AuditEntry, Task, Tenant
from core.tenancy import tenant_scope
from tests.factories import claim, make_agent, make_message, make_session, make_task, make_tenant

MINUTE = datetime.timedelta(minutes=1)
DAY = datetime.timedelta(days=1)


def silent_for(session: Session, span: datetime.timedelta, state: str = "active") -> Session:
    """The session as it is when nothing was said for so long, and nobody has noticed yet."""
    moment = Now() - span
    ended = Now() if state in ("closed", "expired") else None
    Session.unscoped.filter(pk=session.pk).update(
        created_at=moment - MINUTE, last_active_at=moment, state=state, ended_at=ended
    )
    return session


def state_of(session: Session) -> str:
    return str(Session.unscoped.get(pk=session.pk).state)


def speak(session: Session, **fields: object) -> OpenedSession:
    with tenant_scope(session.tenant_id):
        return execute(
            ConversationOpenAction(session_id=session.key, agent_id=session.agent_id, **fields)  # type: ignore[arg-type]
        )


def soon() -> float:
    return time.monotonic() + 30


@pytest.mark.parametrize("state", ["created", "active", "idle"])
def test_a_message_makes_an_open_session_active(tenant: Tenant, state: str) -> None:
    session = silent_for(make_session(make_agent(tenant)), DAY, state)
    assert speak(session).row_id == session.pk
    session.refresh_from_db()
    assert session.state == "active"
    assert timezone.now() - session.last_active_at < MINUTE


@pytest.mark.parametrize(
    ("state", "error"), [("closed", SessionClosed), ("expired", SessionExpired)], ids=["closed", "expired"]
)
def test_what_is_over_takes_no_message_and_stays_as_it_was(
    tenant: Tenant, state: str, error: type[Exception]
) -> None:
    session = silent_for(make_session(make_agent(tenant)), DAY, state)
    session.refresh_from_db()
    before = session.last_active_at
    with pytest.raises(error), transaction.atomic():
        speak(session, title="A title", user_id="ada", user_info={"name": "Ada"})
    session.refresh_from_db()
    assert (session.state, session.title, session.user_id, session.user_info) == (state, "", "", {})
    assert session.last_active_at == before


@pytest.mark.parametrize(
    "values",
    [{"state": "asleep"}, {"state": "closed"}, {"ended_at": Now()}, {"state": "expired", "ended_at": None}],
    ids=str,
)
def test_the_database_knows_the_states(tenant: Tenant, values: dict[str, object]) -> None:
    session = make_session(make_agent(tenant))
    with pytest.raises(IntegrityError), transaction.atomic():
        Session.unscoped.filter(pk=session.pk).update(**values)


def test_the_first_message_names_the_session_and_who_speaks(tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    speak(session, title="First words", user_id="ada", user_info={"name": "Ada"})
    speak(session, title="Second words", user_id="bob")
    session.refresh_from_db()
    assert (session.title, session.user_id, session.user_info) == ("First words", "ada", {"name": "Ada"})
    speak(session, user_info={"name": "Ada Lovelace", "locale": "en"})
    session.refresh_from_db()
    assert session.user_info == {"name": "Ada Lovelace", "locale": "en"}


def hot_updates() -> int:
    """Of sessions in this transaction: those that touched no index."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_get_xact_tuples_hot_updated('conversations_session'::regclass)")
        return int(cursor.fetchone()[0])


def test_a_message_to_an_active_session_touches_no_index(tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    speak(session, title="Hello", user_id="ada", user_info={"name": "Ada"})
    before = hot_updates()
    speak(session, title="Once more", user_id="ada", user_info={"name": "Ada L."})
    assert hot_updates() == before + 1


def test_silence_makes_idle_and_then_expired(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    sessions = {
        "just now": silent_for(make_session(agent), IDLE_AFTER - MINUTE),
        "a while": silent_for(make_session(agent), IDLE_AFTER + MINUTE),
        "never said": silent_for(make_session(agent), IDLE_AFTER + MINUTE, "created"),
        "nearly a month": silent_for(make_session(agent), EXPIRES_AFTER - MINUTE, "idle"),
        "a month": silent_for(make_session(agent), EXPIRES_AFTER + MINUTE, "idle"),
        "a month unsaid": silent_for(make_session(agent), EXPIRES_AFTER + MINUTE, "created"),
        # As after a month without a round: it passes through idle.
        "a month unseen": silent_for(make_session(agent), EXPIRES_AFTER + MINUTE),
        "closed long ago": silent_for(make_session(agent), EXPIRES_AFTER + MINUTE, "closed"),
    }
    rounds.turn()
    assert {name: state_of(session) for name, session in sessions.items()} == {
        "just now": "active",
        "a while": "idle",
        "never said": "created",
        "nearly a month": "idle",
        "a month": "expired",
        "a month unsaid": "expired",
        "a month unseen": "expired",
        "closed long ago": "closed",
    }
    for session in sessions.values():
        session.refresh_from_db()
        over = session.state in (SessionState.CLOSED, SessionState.EXPIRED)
        assert (session.ended_at is not None) == over
    rounds.turn()
    assert state_of(sessions["a while"]) == "idle"


def test_a_long_lived_session_is_as_old_as_its_last_message(tenant: Tenant) -> None:
    """That it began long ago says nothing."""
    session = make_session(make_agent(tenant))
    Session.unscoped.filter(pk=session.pk).update(created_at=Now() - 90 * DAY, state="active")
    rounds.turn()
    assert state_of(session) == "active"


def test_a_round_takes_many_slice_by_slice(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "SLICE", 2)
    agent = make_agent(tenant)
    for _ in range(5):
        silent_for(make_session(agent), DAY)
    assert rounds.fall_idle(soon()) == 5
    assert rounds.fall_idle(soon()) == 0


def test_a_round_that_has_no_time_leaves_the_rest(tenant: Tenant) -> None:
    silent_for(make_session(make_agent(tenant)), DAY)
    assert rounds.fall_idle(time.monotonic()) == 0


def test_a_session_that_a_message_has_is_left_alone(committed_tenant: Tenant) -> None:
    """The round neither waits for the message nor takes its session for silent."""
    session = silent_for(make_session(make_agent(committed_tenant)), DAY)

    def go_round() -> None:
        try:
            rounds.turn()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            speak(session)
            threads.submit(go_round).result(timeout=30)
        assert state_of(session) == "active"


# --- Retention -----------------------------------------------------------------------------------------


def keep(tenant: Tenant, days: int | None) -> Tenant:
    Tenant.objects.filter(pk=tenant.pk).update(retention_days=days)
    return tenant


@pytest.mark.parametrize("state", SessionState.values)
def test_what_is_older_than_its_tenant_keeps_it_goes_with_all_that_belongs_to_it(
    tenant: Tenant, state: str
) -> None:
    agent = make_agent(keep(tenant, 7))
    old = silent_for(make_session(agent), 7 * DAY + MINUTE, state)
    young = silent_for(make_session(agent), 7 * DAY - MINUTE, state)
    task = make_task(tenant, session_id=old.key, status="completed")
    make_message(old, "user", "Hello", task)
    make_message(young, "user", "Hello")
    rounds.turn()
    assert list(Session.unscoped.values_list("key", flat=True)) == [young.key]
    assert Message.unscoped.count() == 1
    assert not Task.unscoped.filter(pk=task.pk).exists()


def test_runs_without_a_session_go_too_once_they_have_ended(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "SLICE", 2)
    agent = make_agent(keep(tenant, 7))
    lone = {"agent_id": agent.pk, "session_id": ""}
    ended = [make_task(tenant, status="completed", **lone) for _ in range(5)]
    others = [
        make_task(tenant, status="queued", **lone),  # nobody has begun it yet
        make_task(tenant, status="completed", session_id="s", agent_id=agent.pk),
        make_task(make_tenant(), status="completed", **lone),
    ]
    old = Now() - 8 * DAY
    Task.unscoped.update(created_at=old, finished_at=old)
    young = make_task(tenant, status="completed", finished_at=timezone.now(), **lone)
    rounds.turn()
    left = {task.pk for task in (*others, young)}
    assert set(Task.unscoped.values_list("pk", flat=True)) == left
    assert not left & {task.pk for task in ended}


def test_a_tenant_that_says_nothing_keeps_for_ever(tenant: Tenant) -> None:
    silent_for(make_session(make_agent(tenant)), 4_000 * DAY)
    theirs = keep(make_tenant(), 1)
    silent_for(make_session(make_agent(theirs)), 2 * DAY)
    rounds.turn()
    assert list(Session.unscoped.values_list("tenant_id", flat=True)) == [tenant.pk]


def test_each_batch_is_recorded_without_what_was_in_it(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "BATCH", 2)
    agent = make_agent(keep(tenant, 1))
    for number in range(3):
        silent_for(make_session(agent, key=f"s-{number}"), 2 * DAY)
    rounds.turn()
    assert not Session.unscoped.exists()
    entries = AuditEntry.unscoped.filter(verb="session.purge").order_by("pk")
    assert [entry.before for entry in entries] == [{"sessions": 2}, {"sessions": 1}]
    assert {entry.tenant_id for entry in entries} == {tenant.pk}
    assert {entry.actor for entry in entries} == {"system"}


def test_what_a_worker_is_still_at_is_left_for_later(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "BATCH", 1)
    agent = make_agent(keep(tenant, 1))
    busy, quiet = (silent_for(make_session(agent), 2 * DAY) for _ in range(2))
    task = make_task(tenant, session_id=busy.key, serial_key=busy.serial_key)
    claim(task)
    rounds.turn()
    assert list(Session.unscoped.values_list("pk", flat=True)) == [busy.pk]
    Task.unscoped.filter(pk=task.pk).update(status="completed")
    rounds.turn()
    assert not Session.unscoped.exists()
    assert quiet.pk
