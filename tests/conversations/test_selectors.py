"""Named reads of conversations."""

from __future__ import annotations

import pytest

from conversations.errors import SessionNotFound
from conversations.models import Session
from conversations.selectors import Turn, session_history, session_messages, session_seq
from core.models import Task, Tenant
from core.tenancy import tenant_scope
from tests.factories import make_agent, make_message, make_session, make_task, make_tenant


@pytest.fixture
def session(tenant: Tenant) -> Session:
    return make_session(make_agent(tenant))


def turn(session: Session, number: int, *, answered: bool = True) -> Task:
    """A question and its answer, at seqs `10 * number` and 5 later."""
    task = make_task(session.tenant)
    make_message(session, "user", f"q{number}", task, seq=10 * number)
    if answered:
        make_message(session, "assistant", f"a{number}", task, seq=10 * number + 5)
    return task


def history(session: Session, task: Task, limit: int = 200) -> list[str]:
    with tenant_scope(session.tenant_id):
        return [turn.text for turn in session_history(session.pk, task.pk, limit)]


def test_history_is_what_was_said_before_and_the_question_last(session: Session) -> None:
    turn(session, 1)
    turn(session, 2)
    task = turn(session, 3, answered=False)
    assert history(session, task) == ["q1", "a1", "q2", "a2", "q3"]
    with tenant_scope(session.tenant_id):
        assert session_history(session.pk, task.pk)[-1] == Turn("user", "q3", seq=30)


def test_later_questions_belong_to_later_runs(session: Session) -> None:
    first = turn(session, 1, answered=False)
    second = turn(session, 2, answered=False)
    assert history(session, first) == ["q1"]
    assert history(session, second) == ["q1", "q2"]


def test_many_later_questions_do_not_hide_the_own_one(session: Session) -> None:
    first = turn(session, 0, answered=False)
    for number in range(1, 120):
        turn(session, number, answered=False)
    assert history(session, first, limit=10) == ["q0"]


def answer(session: Session, task: Task, number: int) -> None:
    make_message(session, "assistant", f"a{number}", task, seq=10 * number + 5)


def test_each_answer_follows_its_question_also_where_it_came_after_further_ones(session: Session) -> None:
    """Questions that were asked at once are answered one by one."""
    tasks = [turn(session, number, answered=False) for number in range(4)]
    expected: list[str] = []
    for number, task in enumerate(tasks):
        assert history(session, task) == [*expected, f"q{number}"]
        answer(session, task, number)
        expected += [f"q{number}", f"a{number}"]
    assert history(session, turn(session, 4, answered=False)) == [*expected, "q4"]


def test_a_question_that_nobody_answered_stays_in_its_place(session: Session) -> None:
    first, second, third = (turn(session, number, answered=False) for number in range(3))
    answer(session, first, 0)
    answer(session, third, 2)
    assert history(session, turn(session, 3, answered=False)) == ["q0", "a0", "q1", "q2", "a2", "q3"]
    assert history(session, second) == ["q0", "a0", "q1"]


def test_an_old_question_that_is_asked_again_is_not_hidden_by_later_answers(session: Session) -> None:
    turn(session, 0)
    old = turn(session, 1)
    for number in range(2, 30):
        turn(session, number)
    assert history(session, old, limit=10) == ["q0", "a0", "q1"]


def test_of_many_questions_at_once_the_last_one_keeps_the_newest_turns(session: Session) -> None:
    tasks = [turn(session, number, answered=False) for number in range(30)]
    for number, task in enumerate(tasks[:-1]):
        answer(session, task, number)
    assert history(session, tasks[-1], limit=5) == ["q27", "a27", "q28", "a28", "q29"]


def test_the_answer_of_a_retry_stands_where_it_was_given(session: Session) -> None:
    """A retry has no question of its own."""
    turn(session, 1, answered=False)
    turn(session, 2)
    make_message(session, "assistant", "again", make_task(session.tenant), seq=30)
    assert history(session, turn(session, 4, answered=False)) == ["q1", "q2", "a2", "again", "q4"]


def test_an_answer_of_the_same_task_is_not_part_of_its_history(session: Session) -> None:
    assert history(session, turn(session, 1)) == ["q1"]


def test_the_limit_keeps_the_newest(session: Session) -> None:
    for number in range(1, 4):
        turn(session, number)
    task = turn(session, 4, answered=False)
    assert history(session, task, limit=3) == ["q3", "a3", "q4"]


def test_history_is_the_sessions_own_and_the_tenants(session: Session) -> None:
    turn(make_session(session.agent), 1)
    task = turn(session, 2)
    assert history(session, task) == ["q2"]
    with tenant_scope(make_tenant().pk):
        assert session_history(session.pk, task.pk) == []


def test_a_question_that_is_gone_has_no_history(session: Session) -> None:
    turn(session, 1)
    assert history(session, make_task(session.tenant)) == []


def read(session: Session, from_seq: int = 0, after: int = 0, limit: int = 100) -> list[str]:
    with tenant_scope(session.tenant_id):
        return [row["text"] for row in session_messages(session.key, from_seq, after, limit)]


def test_messages_open_from_a_seq_on(session: Session) -> None:
    for number in range(3):
        turn(session, number)
    assert read(session) == ["q0", "a0", "q1", "a1", "q2", "a2"]
    assert read(session, from_seq=10) == ["q1", "a1", "q2", "a2"]
    assert read(session, from_seq=11) == ["a1", "q2", "a2"]
    assert read(session, from_seq=26) == []


def test_messages_come_in_pages(session: Session) -> None:
    for number in range(2):
        turn(session, number)
    with tenant_scope(session.tenant_id):
        page = session_messages(session.key, 0, 0, 3)
        rest = session_messages(session.key, 0, page[-1]["id"], 3)
    assert [row["text"] for row in page + rest] == ["q0", "a0", "q1", "a1"]
    assert set(page[0]) == {"id", "role", "text", "task_id", "task_status", "finish_reason", "created_at"}


def test_another_tenants_session_does_not_exist(session: Session) -> None:
    turn(session, 1)
    with tenant_scope(make_tenant().pk), pytest.raises(SessionNotFound):
        session_messages(session.key, 0, 0, 10)
    with tenant_scope(session.tenant_id), pytest.raises(SessionNotFound):
        session_messages("nobody", 0, 0, 10)


def test_a_sessions_seq_is_the_highest_of_its_messages(session: Session) -> None:
    with tenant_scope(session.tenant_id):
        assert session_seq(session.key) == 0
        assert session_seq("nobody") is None
    first, second = make_task(session.tenant), make_task(session.tenant)
    make_message(session, "user", "q1", first, seq=1)
    make_message(session, "user", "q2", second, seq=1_000_005)
    # The first run's answer is written late; its frames came before the second question.
    make_message(session, "assistant", "a1", first, seq=5)
    turn(make_session(session.agent), 9_000_000)
    with tenant_scope(session.tenant_id):
        assert session_seq(session.key) == 1_000_005
    with tenant_scope(make_tenant().pk):
        assert session_seq(session.key) is None
