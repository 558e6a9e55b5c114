"""What a client gets in place of events that the log has lost."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from conversations.models import Session
from core import aio, valkey
from core.events import log
from core.events.groups import session_name
from core.events.log import Growth
from core.models import Task, Tenant
from execution.events import AgentResponseToken, ResponseToken
from orchestrator import snapshots
from orchestrator.snapshots import snapshot, task_snapshot
from tests.factories import make_agent, make_message, make_run, make_session, make_task, make_tenant


@pytest.fixture
def session(committed_tenant: Tenant) -> Session:
    session = make_session(make_agent(committed_tenant))
    log.begin(name_of(session))
    return session


def name_of(session: Session) -> str:
    return session_name(session.tenant_id, session.key)


def run_of(session: Session, **fields: Any) -> Task:
    task = make_task(session.agent.tenant, session_id=session.key, status="processing", attempt=1, **fields)
    make_message(session, "user", f"question {task.pk}", task, seq=log.last_seq_sync(name_of(session)) or 0)
    return task


def settle(session: Session, task: Task, text: str) -> None:
    make_message(session, "assistant", text, task, seq=log.last_seq_sync(name_of(session)) or 0)
    assert task.settle("completed", result={}) == "completed"


def token(task: Task, text: str, before: str = "", floor: int = 0) -> int | None:
    """A worker appends to the answer of the task's first attempt."""
    event = AgentResponseToken(
        task_id=task.pk,
        global_task_id=task.pk,
        tenant_id=task.tenant_id,
        session_id=task.session_id,
        data=ResponseToken(token=text, offset=len(before), is_final=False),
    )
    growth = Growth(len(before.encode()), text.encode(), lambda: (event, (before + text).encode()))
    return aio.run(log.append(event, 1, floor=floor, growth=growth))


def taken(session: Session, from_seq: int = 0) -> dict[str, Any]:
    text, last_seq = aio.run(snapshot(session.tenant_id, session.key, from_seq))
    told = json.loads(text)
    assert told.keys() == {"event", "data"}
    assert told["event"] == "snapshot"
    assert told["data"].keys() == {"messages", "running", "last_seq"}
    assert told["data"]["last_seq"] == last_seq
    data: dict[str, Any] = told["data"]
    return data


def texts(data: dict[str, Any]) -> list[str]:
    return [message["text"] for message in data["messages"]]


def test_a_session_that_nobody_has_begun_is_empty(committed_tenant: Tenant) -> None:
    text, last_seq = aio.run(snapshot(committed_tenant.pk, f"s-{uuid.uuid4().hex}", 0))
    assert json.loads(text)["data"] == {"messages": [], "running": None, "last_seq": 0}
    assert last_seq == 0


def test_messages_are_those_of_the_sessions_page(session: Session) -> None:
    task = run_of(session)
    token(task, "answer")
    settle(session, task, "answer")
    question, answer = taken(session)["messages"]
    fields = {"id", "role", "text", "task_id", "task_status", "finish_reason", "created_at"}
    assert question.keys() == answer.keys() == fields
    assert (question["role"], question["text"]) == ("user", f"question {task.pk}")
    assert (answer["role"], answer["text"], answer["task_id"]) == ("assistant", "answer", str(task.pk))


def test_the_answer_under_way_is_told_with_the_tail_that_it_belongs_to(session: Session) -> None:
    task = run_of(session)
    token(task, "Hello, ")
    token(task, "¿qué? 🎈", "Hello, ")
    data = taken(session)
    assert data["running"] == {"task_id": str(task.pk), "attempt": 1, "text": "Hello, ¿qué? 🎈"}
    assert data["last_seq"] == 2
    assert texts(data) == [f"question {task.pk}"]


def test_an_answer_that_is_stored_is_not_told_twice(session: Session) -> None:
    """Between the settling of a run and its end in the log."""
    task = run_of(session)
    token(task, "answer")
    settle(session, task, "answer")
    data = taken(session)
    assert data["running"] is None
    assert texts(data)[-1] == "answer"


def test_a_run_that_was_settled_without_an_answer_is_not_under_way(session: Session) -> None:
    task = run_of(session)
    token(task, "")
    assert task.settle("failed", error={})
    assert taken(session)["running"] is None


def test_a_token_opens_what_came_after_it(session: Session) -> None:
    first = run_of(session)
    token(first, "first")
    settle(session, first, "first")
    second = run_of(session)
    token(second, "second")
    data = taken(session, from_seq=1)
    assert texts(data) == ["first", f"question {second.pk}"]
    assert data["running"]["text"] == "second"
    assert texts(taken(session, from_seq=2)) == []


def test_only_the_newest_messages_are_told(session: Session) -> None:
    for number in range(205):
        make_message(session, "user", str(number))
    assert texts(taken(session)) == [str(number) for number in range(5, 205)]


def test_another_tenants_session_of_the_same_name_is_another(session: Session) -> None:
    task = run_of(session)
    token(task, "secret")
    other = make_session(make_agent(make_tenant()), session.key)
    data = taken(other)
    assert (data["messages"], data["running"]) == ([], None)


@pytest.mark.parametrize("lost", ["everything", "the marks"])
def test_a_lost_log_goes_on_above_what_was_given(session: Session, lost: str) -> None:
    task = run_of(session)
    token(task, "half")
    make_message(session, "user", "later", seq=1)
    name = name_of(session)
    keys = (
        [log._marks(name)] if lost == "the marks" else [log._log(name), log._marks(name), log._answer(name)]
    )
    valkey.client().delete(*keys)
    data = taken(session)
    assert data["last_seq"] == 1 + log.GAP
    assert token(task, " and more", "half", floor=1) == 2 + log.GAP
    assert taken(session)["running"]["text"] == "half and more"


def test_a_log_that_came_back_without_its_end_is_lifted(session: Session) -> None:
    token(run_of(session), "half")
    make_message(session, "user", "asked at a seq that is gone", seq=9)
    data = taken(session)
    assert data["last_seq"] == 9 + log.GAP
    assert texts(data)[-1] == "asked at a seq that is gone"


@pytest.mark.parametrize("last", ["", "two"])
@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_an_answer_that_ends_meanwhile_is_told_once(
    session: Session, monkeypatch: pytest.MonkeyPatch, moment: str, last: str
) -> None:
    """Its words are in the snapshot or follow it, whenever it is settled."""
    task = run_of(session)
    token(task, "one ")
    read_really, open_really = snapshots._read, snapshots.task_is_open
    done: list[bool] = []

    def end() -> None:
        if not done:
            done.append(True)
            if last:
                token(task, last, "one ")
            settle(session, task, f"one {last}")

    def read(*args: Any) -> Any:
        if moment == "before":
            end()
        found = read_really(*args)
        if moment == "after":
            end()
        return found

    def task_is_open(task_id: uuid.UUID) -> bool:
        found = open_really(task_id)
        if moment == "between":
            end()
        return found

    monkeypatch.setattr(snapshots, "_read", read)
    monkeypatch.setattr(snapshots, "task_is_open", task_is_open)
    data = taken(session)
    if moment == "after":
        assert (data["running"]["text"], data["last_seq"]) == ("one ", 1)
        assert texts(data) == [f"question {task.pk}"]
    else:
        assert (data["running"], data["last_seq"]) == (None, 2 if last else 1)
        assert texts(data) == [f"question {task.pk}", f"one {last}"]


def test_a_tasks_snapshot_holds_its_own_messages_only(session: Session) -> None:
    first = run_of(session)
    token(first, "first")
    settle(session, first, "first")
    second = run_of(session)
    token(second, "second")

    def of(task: Task) -> dict[str, Any]:
        text, last_seq = aio.run(task_snapshot(session.tenant_id, session.key, task.pk))
        data: dict[str, Any] = json.loads(text)["data"]
        assert data["last_seq"] == last_seq == 2
        return data

    assert texts(of(first)) == [f"question {first.pk}", "first"]
    assert of(first)["running"] is None
    assert texts(of(second)) == [f"question {second.pk}"]
    assert of(second)["running"]["text"] == "second"


@pytest.mark.parametrize("status", ["failed", "cancelled", "processing"])
def test_a_question_tells_how_its_task_stands(session: Session, status: str) -> None:
    """The events of an end without an answer may be lost with the log."""
    task = make_run(session, "What?")
    Task.unscoped.filter(pk=task.pk).update(status=status)
    (question,) = taken(session)["messages"]
    assert (question["text"], question["task_status"]) == ("What?", status)
