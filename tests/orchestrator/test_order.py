"""A session's runs: one at a time, in the order of its messages; or refused; or in the place of the last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.request import urlopen

import pytest
from django.db import connection
from django.test import Client

from agents.models import Agent
from bench.fake_model import FakeModel, Schedule, answer_text, start
from conversations.errors import SessionBusy
from conversations.models import Message
from core import aio
from core.actions import running, sweeper
from core.actions.bus import execute
from core.actions.worker import run_task
from core.models import Task, Tenant
from core.tenancy import tenant_scope
from orchestrator.actions import ChatCancelTaskAction, ChatMessageSent, ChatSendMessageAction
from tests.core.broker.server import eventually
from tests.factories import claim, lose_worker, make_agent
from tests.workers import Worker

TOKENS = 4


def send(agent: Agent, message: str, session_id: str | None = None) -> ChatMessageSent:
    with tenant_scope(agent.tenant_id):
        return execute(ChatSendMessageAction(agent_id=agent.pk, message=message, session_id=session_id))


def row_of(sent: ChatMessageSent) -> Task:
    row: Task = Task.unscoped.get(pk=sent.task_id)
    return row


def run(sent: ChatMessageSent) -> Task:
    task = row_of(sent)
    run_task(str(task.pk), task.tenant_id)
    task.refresh_from_db()
    return task


def published(*messages: ChatMessageSent) -> list[bool]:
    """Whether the broker was given each one's message."""
    return [row_of(sent).status != "pending" for sent in messages]


@pytest.fixture
def model() -> Iterator[str]:
    """The base URL of a model server that takes its time, beside the test."""
    runner, base_url = aio.run(start(FakeModel(Schedule(first_token=0.02, interval=0.005, tokens=TOKENS))))
    yield base_url
    aio.run(runner.cleanup())


def books(base_url: str) -> list[dict[str, Any]]:
    """What the model server was asked, the oldest first."""
    with urlopen(base_url.removesuffix("/v1") + "/_books") as response:
        return list(json.load(response)["requests"])


@pytest.fixture
def workers(committed_tenant: Tenant, model: str, tmp_path: Path) -> Iterator[None]:
    """Two processes: order is not the doing of one."""
    more = {"OPENAI_BASE_URL": model, "OPENAI_API_KEY": "a-key"}
    both = [Worker(tmp_path / f"w{at}.log", domains="agent,orchestrator", **more) for at in range(2)]
    for worker in both:
        worker.ready()
    yield
    for worker in both:
        worker.kill()


@pytest.mark.usefixtures("workers")
def test_twenty_messages_at_once_are_answered_one_by_one(committed_tenant: Tenant, model: str) -> None:
    agent = make_agent(committed_tenant, provider="openai", model="fake?mark=order")
    first = send(agent, "q0")
    barrier = Barrier(19)

    def ask(number: int) -> ChatMessageSent:
        try:
            barrier.wait(30)
            return send(agent, f"q{number}", first.session_id)
        finally:
            connection.close()

    with ThreadPoolExecutor(19) as threads:
        sent = [first, *threads.map(ask, range(1, 20))]
    ids = [one.task_id for one in sent]
    eventually(lambda: Task.unscoped.filter(pk__in=ids, status="completed").count() == 20, 60)
    tasks = list(Task.unscoped.filter(pk__in=ids).order_by("ordinal"))
    assert {task.attempt for task in tasks} == {1}
    questions = [Message.unscoped.get(task=task, role="user").text for task in tasks]
    # Each run was told all that had been said before it, and nothing else.
    asked = books(model)
    told = [[(said["role"], said["content"]) for said in entry["messages"]] for entry in asked]
    expected: list[list[tuple[str, str]]] = []
    for number in range(20):
        before = [*expected[-1], ("assistant", answer_text(TOKENS))] if expected else []
        expected.append([*before, ("user", questions[number])])
    assert told == expected
    # And began when the one before it had ended, in the rows as well as at the model.
    for task, following in pairwise(tasks):
        assert task.finished_at <= following.started_at
    for call, following in pairwise(asked):
        assert call["last_byte_at"] <= following["received_at"]


def test_the_second_message_waits_for_the_first(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    first = send(agent, "one")
    second, third = send(agent, "two", first.session_id), send(agent, "three", first.session_id)
    assert (first.status, second.status, third.status) == ("queued", "pending", "pending")
    assert run(second).status == "pending"
    assert run(first).status == "completed"
    assert published(second, third) == [True, False]
    assert run(second).status == "completed"
    assert run(third).status == "completed"


def test_sessions_do_not_wait_for_each_other(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    sent = [send(agent, "hello") for _ in range(3)]
    for one in reversed(sent):
        assert run(one).status == "completed"


Ending = Callable[[ChatMessageSent], None]


def is_cancelled(sent: ChatMessageSent) -> None:
    with tenant_scope(row_of(sent).tenant_id):
        assert execute(ChatCancelTaskAction(task_id=str(sent.task_id))).status == "cancelled"


def fails(sent: ChatMessageSent) -> None:
    Task.unscoped.filter(pk=sent.task_id).update(payload={"gone": 1})
    assert run(sent).status == "failed"


def dies_for_good(sent: ChatMessageSent) -> None:
    claim(row_of(sent))
    Task.unscoped.filter(pk=sent.task_id).update(crashes=sweeper.MOST_CRASHES - 1)
    lose_worker(row_of(sent))
    assert sweeper.end_abandoned() == 1
    assert row_of(sent).status == "failed"


def dies_while_it_is_cancelled(sent: ChatMessageSent) -> None:
    claim(row_of(sent))
    assert Task.ask_to_cancel(sent.task_id, "ada")
    lose_worker(row_of(sent))
    assert sweeper.end_abandoned() == 1
    assert row_of(sent).status == "cancelled"


@pytest.mark.parametrize("end", [is_cancelled, fails, dies_for_good, dies_while_it_is_cancelled])
def test_however_a_run_ends_the_next_one_follows(committed_tenant: Tenant, end: Ending) -> None:
    agent = make_agent(committed_tenant)
    first = send(agent, "one")
    second = send(agent, "two", first.session_id)
    assert published(second) == [False]
    end(first)
    assert published(second) == [True]
    assert run(second).status == "completed"


def test_a_message_in_the_middle_may_be_taken_back(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    first = send(agent, "one")
    second, third = send(agent, "two", first.session_id), send(agent, "three", first.session_id)
    is_cancelled(second)
    assert run(first).status == "completed"
    assert published(third) == [True]
    assert run(third).status == "completed"


def test_a_busy_session_may_refuse(committed_tenant: Tenant, client: Client) -> None:
    agent = make_agent(committed_tenant, multitask_strategy="reject")
    first = send(agent, "one")
    with pytest.raises(SessionBusy) as refused:
        send(agent, "two", first.session_id)
    assert refused.value.details == {"task_id": str(first.task_id)}
    body = {"agent_id": str(agent.pk), "message": "two", "session_id": first.session_id}
    response = client.post("/api/v1/chat/message", body, content_type="application/json")
    assert response.status_code == 409
    assert response.json()["error"]["type"] == "SessionBusy"
    assert Task.unscoped.filter(action="agent.execute").count() == Message.unscoped.count() == 1
    assert send(agent, "another session").status == "queued"
    run(first)
    assert run(send(agent, "three", first.session_id)).status == "completed"


@pytest.mark.parametrize("status", ["pending", "queued", "processing", "waiting", "cancelling"])
def test_any_open_run_keeps_a_session_busy(tenant: Tenant, status: str) -> None:
    agent = make_agent(tenant, multitask_strategy="reject")
    first = send(agent, "one")
    Task.unscoped.filter(pk=first.task_id).update(status=status)
    with pytest.raises(SessionBusy):
        send(agent, "two", first.session_id)


def test_of_messages_that_come_at_once_a_busy_session_takes_one(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, multitask_strategy="reject")
    first = send(agent, "one")
    assert run(first).status == "completed"
    barrier = Barrier(4)

    def ask(number: int) -> bool:
        try:
            barrier.wait(30)
            send(agent, f"at once {number}", first.session_id)
            return True
        except SessionBusy:
            return False
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(ask, range(4))) == 1


def test_a_message_may_interrupt_the_run_before_it(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, model="long", multitask_strategy="interrupt")
    first = send(agent, "one")

    def work() -> None:
        try:
            run_task(str(first.task_id), committed_tenant.pk)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(work)
        eventually(lambda: first.task_id in running.claimed())
        second = send(agent, "two", first.session_id)
        assert second.status == "pending"
        assert run(second).status == "pending"
        working.result(30)
    ended = row_of(first)
    assert (ended.status, ended.cancelled_by) == ("cancelled", "system")
    assert published(second) == [True]
    claimed = claim(row_of(second))
    assert ended.finished_at <= claimed.started_at


def test_an_interrupt_takes_what_waits_and_the_last_message_runs(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, multitask_strategy="interrupt")
    first = send(agent, "one")
    second = send(agent, "two", first.session_id)
    third = send(agent, "three", first.session_id)
    assert [row_of(sent).status for sent in (first, second, third)] == ["cancelled", "cancelled", "queued"]
    assert run(third).status == "completed"
    ends = Task.unscoped.filter(action="websocket.send_message")
    assert {task.payload["task_id"] for task in ends} == {
        str(sent.task_id) for sent in (first, second, third)
    }


def test_a_message_to_a_run_that_is_being_cancelled_waits_for_its_end(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, multitask_strategy="interrupt")
    first = send(agent, "one")
    task = claim(row_of(first))
    assert Task.ask_to_cancel(task.pk, "ada")
    second = send(agent, "two", first.session_id)
    assert (row_of(first).status, row_of(first).cancelled_by, second.status) == (
        "cancelling",
        "ada",
        "pending",
    )
    assert task.settle("completed", result={}) == "cancelled"
