"""Runs without a session: messages in the task, a log of their own, the answer in the row."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import urlopen

import pytest
from django.db import connection
from django.db.models import Q
from pydantic import ValidationError

from bench.fake_model import FakeModel, Schedule, start
from conversations.models import Message, Session
from core import aio, valkey
from core.actions import running, sweeper
from core.actions.bus import execute
from core.actions.tasks import TaskCancelAction, TaskRetryAction
from core.actions.worker import run_task
from core.events import log
from core.events.groups import log_name, session_name
from core.models import Task, Tenant, UsageRecord
from core.tenancy import tenant_scope
from execution.actions import ExecuteAgentAction, RunOptions
from execution.events import AgentResponseToken, ResponseToken
from tests.factories import claim, lose_worker, make_agent, make_execution, make_tenant

DAY, HOUR = 24 * 60 * 60, 60 * 60


def name_of(task: Task) -> str:
    return log_name(task.tenant_id, task.session_id, task.pk)


def events_of(task: Task) -> list[dict[str, Any]]:
    entries = valkey.client().xrange(log._log(name_of(task)))
    return [json.loads(fields[b"e"]) | {"seq": int(name.split(b"-")[0])} for name, fields in entries]


def names_of(task: Task) -> list[str]:
    """The names of its events; tokens as one."""
    names = [event["event"] for event in events_of(task)]
    return [name for at, name in enumerate(names) if at == 0 or name != names[at - 1]]


def streamed(task: Task) -> str:
    events = events_of(task)
    return "".join(event["data"]["token"] for event in events if event["event"] == "agent_response_token")


def work(task: Task) -> Task:
    run_task(str(task.pk), task.tenant_id)
    task.refresh_from_db()
    return task


def callback_of(task: Task) -> Task:
    follow: Task = Task.unscoped.get(global_task_id=task.global_task_id, action="websocket.send_message")
    return work(follow)


@pytest.fixture
def books() -> Iterator[tuple[str, Any]]:
    """A model server's base URL, and what it was asked last."""
    runner, url = aio.run(start(FakeModel(Schedule(first_token=0.0, interval=0.002, tokens=6))))

    def last() -> dict[str, Any]:
        with urlopen(url.removesuffix("/v1") + "/_books") as response:
            entry: dict[str, Any] = json.load(response)["requests"][-1]
        return entry

    yield url, last
    aio.run(runner.cleanup())


@pytest.fixture
def asked(books: tuple[str, Any], settings: Any) -> Any:
    """The operator's OpenAI is the fake model; gives what it was asked last."""
    settings.PROVIDERS = settings.PROVIDERS | {"openai": (books[0], "a-key")}
    return books[1]


def test_the_answer_is_in_the_row_and_in_a_log_of_its_own(committed_tenant: Tenant) -> None:
    task = work(make_execution(make_agent(committed_tenant), ("user", "one two three")))
    assert (task.status, task.error, task.session_id, task.attempt) == ("completed", None, "", 1)
    assert task.result == {
        "text": "one two three",
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 0, "accuracy": "exact"},
        "tool_calls": [],
        "citations": [],
        "finish_reason": "stop",
    }
    assert callback_of(task).status == "completed"
    assert names_of(task) == [
        "agent_execution_started",
        "agent_response_token",
        "agent_execution_completed",
        "task_completed",
    ]
    assert [event["seq"] for event in events_of(task)] == list(range(1, len(events_of(task)) + 1))
    assert {event["session_id"] for event in events_of(task)} == {""}
    assert streamed(task) == "one two three"
    assert not Session.unscoped.exists() and not Message.unscoped.exists()
    record = UsageRecord.unscoped.get(task=task)
    assert (record.session_id, record.end_user, record.completion_tokens) == ("", "ada", 3)


def test_two_runs_do_not_share_a_log(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    first, second = (work(make_execution(agent, ("user", text))) for text in ("first", "second"))
    assert (streamed(first), streamed(second)) == ("first", "second")
    assert name_of(first) != name_of(second)
    assert session_name(first.tenant_id, "") not in (name_of(first), name_of(second))


def test_its_log_lives_for_an_hour(committed_tenant: Tenant) -> None:
    task = work(make_execution(make_agent(committed_tenant), ("user", "Hello?")))
    for key in (log._log(name_of(task)), log._marks(name_of(task))):
        assert 0 < valkey.client().ttl(key) <= HOUR


@pytest.mark.usefixtures("openai_agent")
@pytest.mark.parametrize(
    ("instructions", "given", "read"),
    [
        ("Be brief.", [("user", "Hi")], [("system", "Be brief."), ("user", "Hi")]),
        ("", [("user", "Hi")], [("user", "Hi")]),
        ("", [("system", "Rhyme."), ("user", "Hi")], [("system", "Rhyme."), ("user", "Hi")]),
        (
            "You are {{agent_name}}.",
            [("system", "Rhyme, {{agent_name}}."), ("system", "Shout."), ("user", "Hi")],
            [("system", "You are Test agent.\n\nRhyme, {{agent_name}}.\n\nShout."), ("user", "Hi")],
        ),
        (
            "Be brief.",
            [("user", "a"), ("assistant", "b"), ("system", "Now rhyme."), ("user", "c")],
            [
                ("system", "Be brief."),
                ("user", "a"),
                ("assistant", "b"),
                ("system", "Now rhyme."),
                ("user", "c"),
            ],
        ),
    ],
    ids=["instructions", "none", "system only", "both", "later system"],
)
def test_what_the_model_reads(
    committed_tenant: Tenant,
    asked: Any,
    instructions: str,
    given: list[tuple[str, str]],
    read: list[tuple[str, str]],
) -> None:
    agent = make_agent(committed_tenant, provider="openai", model="fake", instructions=instructions)
    assert work(make_execution(agent, *given)).status == "completed"
    assert [(message["role"], message["content"]) for message in asked()["messages"]] == read


@pytest.fixture
def openai_agent(asked: Any) -> None:
    """The agents of this test ask the fake model."""


def test_nothing_that_was_sent_is_left_out(committed_tenant: Tenant, asked: Any) -> None:
    agent = make_agent(committed_tenant, provider="openai", model="fake", context_tokens=256)
    given = [("user", "word " * 400), ("assistant", "yes"), ("user", "And now?")]
    work(make_execution(agent, *given))
    assert [message["content"] for message in asked()["messages"]] == [text for _, text in given]


def test_what_is_asked_of_one_run_reaches_the_model(committed_tenant: Tenant, asked: Any) -> None:
    agent = make_agent(committed_tenant, provider="openai", model="fake", temperature=1.5)
    options = RunOptions(temperature=0, max_output_tokens=3, stop=("END",))
    task = work(make_execution(agent, ("user", "Hi"), options=options))
    fields = asked()["fields"]
    assert (fields["temperature"], fields["stop"]) == (0, ["END"])
    assert 3 in (fields.get("max_tokens"), fields.get("max_completion_tokens"))
    assert task.result["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("agents", "tiers", "asks", "kept"), [(2, None, 5, 2), (None, 2, 5, 2), (5, 5, 2, 2), (None, None, 2, 2)]
)
def test_a_bound_is_only_lowered(
    transactional_db: None, agents: int | None, tiers: int | None, asks: int, kept: int
) -> None:
    agent = make_agent(make_tenant(max_output_tokens=tiers), max_output_tokens=agents)
    options = RunOptions(max_output_tokens=asks)
    task = work(make_execution(agent, ("user", "a b c d e f g"), options=options))
    assert task.result["usage"]["completion_tokens"] == kept


def test_a_model_that_does_not_stop_is_stopped(committed_tenant: Tenant, asked: Any) -> None:
    """The fake model knows the field and does not keep to it: the call is cut, and estimated."""
    agent = make_agent(committed_tenant, provider="openai", model="fake-endless")
    task = work(make_execution(agent, ("user", "Hi"), options=RunOptions(stop=("k4 tok5", "never"))))
    assert (task.status, task.result["finish_reason"]) == ("completed", "stop")
    assert task.result["text"] == streamed(task) == "tok0 tok1 tok2 tok3 to"
    assert task.result["usage"]["accuracy"] == "estimated"
    wait_until(lambda: asked()["outcome"] == "cut")


def test_the_script_stops_by_itself(committed_tenant: Tenant) -> None:
    options = RunOptions(stop=("three",))
    task = work(make_execution(make_agent(committed_tenant), ("user", "one two three four"), options=options))
    assert (task.result["text"], task.result["finish_reason"]) == ("one two ", "stop")
    assert task.result["usage"]["accuracy"] == "exact"


def wait_until(look: Any) -> None:
    pause = threading.Event()
    for _ in range(2_000):
        if look():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made
        running.hand_over()


def begun(threads: ThreadPoolExecutor, task: Task) -> Any:
    def job() -> None:
        try:
            run_task(str(task.pk), task.tenant_id)
        finally:
            connection.close()

    future = threads.submit(job)
    wait_until(lambda: streamed(task))
    return future


def test_cancelled_half_way_it_keeps_its_text(committed_tenant: Tenant, threads: ThreadPoolExecutor) -> None:
    task = make_execution(make_agent(committed_tenant, model="long"), ("user", "Go on."))
    worker = begun(threads, task)
    with tenant_scope(committed_tenant.pk):
        execute(TaskCancelAction(task_id=task.pk, by="ada"))
    worker.result(timeout=30)
    task.refresh_from_db()
    assert (task.status, task.cancelled_by, task.error) == ("cancelled", "ada", None)
    assert task.result["text"] == streamed(task) != ""
    assert callback_of(task).status == "completed"
    told = [event["data"].get("status") or event["event"] for event in events_of(task)]
    assert told[-2:] == ["agent_execution_completed", "cancelled"]
    assert told.count("cancelling") == 1  # and what was under way may follow it


def test_cancelled_before_it_began_its_log_has_one_event(committed_tenant: Tenant) -> None:
    task = make_execution(make_agent(committed_tenant), ("user", "Hello?"))
    with tenant_scope(committed_tenant.pk):
        execute(TaskCancelAction(task_id=task.pk, by="ada"))
    callback_of(task)
    [event] = events_of(task)
    assert (event["seq"], event["data"]["status"]) == (1, "cancelled")


def test_a_dead_workers_run_goes_on_in_its_log(committed_tenant: Tenant) -> None:
    task = make_execution(make_agent(committed_tenant), ("user", "Hello?"))
    dead = claim(task)
    say(dead, "forgotten")
    lose_worker(task)
    sweeper.end_abandoned()
    task.refresh_from_db()
    assert (task.status, task.attempt) == ("queued", 2)
    assert work(task).result["text"] == "Hello?"
    assert names_of(task) == [
        "agent_response_token",
        "task_status_update",
        "agent_execution_started",
        "agent_response_token",
        "agent_execution_completed",
    ]
    assert [event["seq"] for event in events_of(task)] == list(range(1, len(events_of(task)) + 1))


def test_a_dead_workers_cancelled_run_keeps_what_was_heard(committed_tenant: Tenant) -> None:
    task = make_execution(make_agent(committed_tenant), ("user", "Hello?"))
    say(claim(task), "so far")
    with tenant_scope(committed_tenant.pk):
        execute(TaskCancelAction(task_id=task.pk, by="ada"))
    lose_worker(task)
    sweeper.end_abandoned()
    task.refresh_from_db()
    assert (task.status, task.result["text"]) == ("cancelled", "so far")


def test_a_log_that_was_lost_goes_on_far_above(committed_tenant: Tenant) -> None:
    """Somebody may have heard a seq of the first attempt."""
    task = make_execution(make_agent(committed_tenant), ("user", "Hello?"))
    say(claim(task), "forgotten")
    valkey.client().delete(log._log(name_of(task)), log._marks(name_of(task)), log._answer(name_of(task)))
    lose_worker(task)
    sweeper.end_abandoned()
    assert work(task).status == "completed"
    assert min(event["seq"] for event in events_of(task)) > log.GAP


def say(task: Task, token: str) -> None:
    """What a worker says of the task's present attempt."""
    event = AgentResponseToken(
        task_id=task.pk,
        global_task_id=task.global_task_id,
        tenant_id=task.tenant_id,
        session_id="",
        data=ResponseToken(token=token, offset=0, is_final=False),
    )
    growth = log.Growth(0, token.encode(), lambda: (event, token.encode()))
    assert aio.run(log.append(event, task.attempt, floor=0, growth=growth))


def test_done_again_it_is_another_run(committed_tenant: Tenant) -> None:
    task = work(make_execution(make_agent(committed_tenant), ("user", "Once more")))
    with tenant_scope(committed_tenant.pk):
        retried = execute(TaskRetryAction(task_id=task.pk))
    again = work(Task.unscoped.get(pk=retried.task_id))
    assert (again.status, again.result["text"]) == ("completed", "Once more")
    assert streamed(again) == "Once more"
    follow = Task.unscoped.get(parent_of(again))
    assert work(follow).status == "completed"
    assert names_of(again)[-1] == "task_completed"


def parent_of(task: Task) -> Any:
    return Q(action="websocket.send_message", payload__task_id=str(task.pk))


def test_a_failed_run_says_why(committed_tenant: Tenant) -> None:
    task = work(make_execution(make_agent(committed_tenant, provider="openai"), ("user", "Hi")))
    assert (task.status, task.error["type"]) == ("failed", "ProviderNotConfigured")
    callback_of(task)
    assert names_of(task)[-2:] == ["agent_execution_failed", "task_failed"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}], "options": {"stop": ["a", "b", "c", "d", "e"]}},
        {"messages": [{"role": "user", "content": "x"}], "options": {"stop": [""]}},
        {"messages": [{"role": "user", "content": "x"}], "options": {"temperature": 3}},
        {"messages": [{"role": "user", "content": "x"}], "options": {"max_output_tokens": 0}},
        {"session_id": ""},
        {"session_id": "s-1"},
        {"session_id": "s-1", "session_row_id": 1, "messages": [{"role": "user", "content": "x"}]},
    ],
    ids=["none", "role", "stops", "empty stop", "hot", "no tokens", "nothing said", "no row", "both"],
)
def test_what_is_no_run(fields: dict[str, Any]) -> None:
    agent = "0192f0aa-0000-7000-8000-000000000000"
    with pytest.raises(ValidationError):
        ExecuteAgentAction(**{"agent_id": agent, "version_id": 1, "session_id": "", **fields})
