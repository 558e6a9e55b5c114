"""One run, end to end, in this process: question in, answer, usage and events out."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from celery.exceptions import Reject
from django.db import connection, connections
from django.db.models.functions import Now

from agents.models import Agent
from bench.fake_model import FakeModel, Schedule, start
from conversations.models import Message, Session
from core import aio, valkey
from core.actions import heartbeat, running, sweeper
from core.actions.bus import execute
from core.actions.tasks import TaskCancelAction
from core.actions.worker import run_task
from core.events import log
from core.events.groups import session_name
from core.models import Task, Tenant, UsageRecord
from core.tenancy import tenant_scope
from execution.handlers import runs as handlers
from tests.factories import (
    claim,
    lose_worker,
    make_agent,
    make_execution,
    make_message,
    make_run,
    make_session,
    make_task,
    make_tenant,
)


def events_of(task: Task) -> list[dict[str, Any]]:
    """All that the session's log has, also where it has gone on far above."""
    entries = valkey.client().xrange(log._log(session_name(task.tenant_id, task.session_id)))
    return [json.loads(fields[b"e"]) | {"seq": int(name.split(b"-")[0])} for name, fields in entries]


def names_of(task: Task) -> list[str]:
    names = [event["event"] for event in events_of(task)]
    return [name for at, name in enumerate(names) if at == 0 or name != names[at - 1]]


def streamed(task: Task) -> str:
    events = events_of(task)
    return "".join(event["data"]["token"] for event in events if event["event"] == "agent_response_token")


def answer_of(task: Task) -> Message | None:
    return Message.unscoped.filter(task=task, role="assistant").first()


def run(task: Task) -> Task:
    run_task(str(task.pk), task.tenant_id)
    task.refresh_from_db()
    return task


def ask(agent: Agent, text: str, session: Session | None = None) -> Task:
    return run(make_run(session or make_session(agent), text))


@pytest.fixture(scope="module")
def fake_model() -> Iterator[str]:
    """A model server on the worker's loop; gives its base URL."""
    model = FakeModel(Schedule(first_token=0.0, interval=0.0, tokens=6))
    runner, base_url = aio.run(start(model))
    yield base_url
    aio.run(runner.cleanup())


@pytest.fixture
def openai(fake_model: str, settings: Any) -> None:
    """The operator's OpenAI is the fake model."""
    settings.PROVIDERS = settings.PROVIDERS | {"openai": (fake_model, "a-key")}


def test_a_question_is_answered(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, instructions="Be brief.")
    task = ask(agent, "one two three")
    assert (task.status, task.error, task.attempt) == ("completed", None, 1)
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 0, "accuracy": "exact"}
    assert task.result == {
        "text": "one two three",
        "usage": usage,
        "tool_calls": [],
        "citations": [],
        "finish_reason": "stop",
    }
    assert names_of(task) == [
        "agent_execution_started",
        "agent_response_token",
        "agent_execution_completed",
    ]
    assert streamed(task) == "one two three"
    assert events_of(task)[-1]["data"] == task.result


def test_a_version_of_another_tenants_is_not_run(committed_tenant: Tenant) -> None:
    """Versions are kept for everybody: what a task names is looked at once more."""
    foreign = make_agent(make_tenant(), instructions="Secret.")
    task = make_execution(make_agent(committed_tenant), ("user", "Hello"))
    Task.unscoped.filter(pk=task.pk).update(payload=task.payload | {"version_id": foreign.version_id})
    run(task)
    assert task.error is not None
    assert (task.status, task.error["type"]) == ("failed", "AgentNotFound")
    assert not UsageRecord.unscoped.exists()


def test_the_answer_is_a_message_of_its_session(committed_tenant: Tenant) -> None:
    task = ask(make_agent(committed_tenant), "Hello?")
    answer = answer_of(task)
    assert answer is not None
    assert (answer.text, answer.finish_reason) == ("Hello?", "stop")
    assert (answer.tenant_id, answer.session.key) == (committed_tenant.pk, task.session_id)
    last_frame = [event for event in events_of(task) if event["event"] == "agent_response_token"][-1]
    assert answer.seq == last_frame["seq"]


def test_what_it_cost_is_written_down_once(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    task = ask(agent, "one two")
    record = UsageRecord.unscoped.get(task=task)
    assert (record.tenant_id, record.agent_id, record.session_id, record.end_user) == (
        committed_tenant.pk,
        agent.pk,
        task.session_id,
        "ada",
    )
    assert (record.provider, record.model, record.accuracy) == ("scripted", "echo", "exact")
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (2, 2, 0)
    run(task)
    assert UsageRecord.unscoped.count() == 1


def test_a_run_knows_what_was_said_before_and_nothing_said_later(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, model="demo")
    session = make_session(agent)
    ask(agent, "I am Ada.", session)
    task = make_run(session, "Who am I?")
    make_run(session, "A later question")
    run(task)
    assert "I am Ada." in task.result["text"]
    assert "A later question" not in task.result["text"]


def test_a_run_keeps_the_version_it_was_asked_for(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    task = make_run(make_session(agent), "Hello?")
    other = make_agent(committed_tenant, model="long")
    Agent.unscoped.filter(pk=agent.pk).update(version=other.version, deleted_at="2026-01-01T00:00:00Z")
    assert run(task).result["text"] == "Hello?"


@pytest.mark.usefixtures("openai")
def test_the_providers_usage_is_taken_exactly(committed_tenant: Tenant) -> None:
    task = ask(make_agent(committed_tenant, provider="openai", model="fake"), "Hello?")
    assert task.status == "completed"
    assert task.result["text"].split() == [f"tok{number}" for number in range(6)]
    record = UsageRecord.unscoped.get(task=task)
    assert (record.accuracy, record.completion_tokens) == ("exact", 6)


@pytest.mark.usefixtures("openai")
def test_a_provider_that_keeps_silent_about_usage_is_estimated(committed_tenant: Tenant) -> None:
    task = ask(make_agent(committed_tenant, provider="openai", model="fake-no-usage"), "Hello?")
    record = UsageRecord.unscoped.get(task=task)
    assert task.status == "completed"
    assert record.accuracy == "estimated"
    assert record.prompt_tokens > 0
    assert record.completion_tokens > 0


@pytest.mark.usefixtures("openai")
@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("fake-400", "ProviderRejected"),
        ("fake-401", "ProviderAuthenticationFailed"),
        ("fake-garbage?at=0", "ProviderProtocolError"),
    ],
)
def test_a_failing_provider_fails_the_run(committed_tenant: Tenant, model: str, kind: str) -> None:
    task = ask(make_agent(committed_tenant, provider="openai", model=model), "Hello?")
    assert (task.status, task.result) == ("failed", None)
    assert task.error["type"] == kind
    assert set(task.error) == {"type", "message", "details"}
    assert answer_of(task) is None
    assert UsageRecord.unscoped.get(task=task).accuracy == "unknown"
    assert names_of(task) == ["agent_execution_started", "agent_execution_failed"]
    assert events_of(task)[-1]["data"] == {"error": task.error["message"], "error_type": kind}


@pytest.mark.usefixtures("openai")
@pytest.mark.parametrize("model", ["fake-cut", "fake-end", "fake-garbage", "fake-error"])
def test_a_provider_that_fails_half_way_keeps_the_half_and_estimates_it(
    committed_tenant: Tenant, model: str
) -> None:
    task = ask(make_agent(committed_tenant, provider="openai", model=model), "Hello?")
    assert task.status == "failed"
    answer = answer_of(task)
    assert answer is not None
    assert answer.text == streamed(task) != ""
    assert answer.finish_reason == "failed"
    record = UsageRecord.unscoped.get(task=task)
    assert record.accuracy == "estimated"
    assert record.completion_tokens > 0


def test_a_tier_without_the_operators_keys_uses_none(
    transactional_db: None, settings: Any, fake_model: str
) -> None:
    settings.PROVIDERS = settings.PROVIDERS | {"openai": (fake_model, "a-key")}
    tenant = make_tenant(uses_environment_keys=False)
    task = ask(make_agent(tenant, provider="openai", model="fake"), "Hello?")
    assert (task.status, task.error["type"]) == ("failed", "ProviderNotConfigured")
    assert not UsageRecord.unscoped.exists()
    assert ask(make_agent(tenant), "Hello?").status == "completed"
    assert UsageRecord.unscoped.count() == 1


def test_an_operator_without_a_key_has_no_provider(committed_tenant: Tenant) -> None:
    task = ask(make_agent(committed_tenant, provider="openai", model="gpt-4.1-mini"), "Hello?")
    assert (task.status, task.error["type"]) == ("failed", "ProviderNotConfigured")
    assert names_of(task)[-1] == "agent_execution_failed"
    assert not UsageRecord.unscoped.exists()


def test_the_agents_own_timeout_holds(committed_tenant: Tenant) -> None:
    task = ask(make_agent(committed_tenant, model="long", timeout_seconds=0.1), "Hello?")
    assert (task.status, task.error["type"]) == ("failed", "DeadlineExceeded")


def test_the_platforms_bound_is_the_longest_timeout(committed_tenant: Tenant, settings: Any) -> None:
    settings.TASK_TIMEOUT_SECONDS = 0.1
    task = ask(make_agent(committed_tenant, model="long", timeout_seconds=3_600), "Hello?")
    assert (task.status, task.error["type"]) == ("failed", "DeadlineExceeded")


def first_token(task: Task) -> None:
    """Wait until the run speaks."""
    deadline = threading.Event()
    for _ in range(2_000):
        if streamed(task):
            return
        deadline.wait(0.005)
    raise AssertionError("the run did not begin")


def test_a_run_cancelled_half_way_keeps_its_text(committed_tenant: Tenant) -> None:
    task = make_run(make_session(make_agent(committed_tenant, model="long")), "Go on.")

    def worker() -> None:
        try:
            run_task(str(task.pk), task.tenant_id)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(worker)
        first_token(task)
        with tenant_scope(committed_tenant.pk):
            execute(TaskCancelAction(task_id=task.pk, by="ada"))
        running.result(timeout=30)
    task.refresh_from_db()
    assert (task.status, task.cancelled_by, task.error) == ("cancelled", "ada", None)
    assert task.result["finish_reason"] == "cancelled"
    assert task.result["text"] == streamed(task) != ""
    answer = answer_of(task)
    assert answer is not None
    assert (answer.text, answer.finish_reason) == (task.result["text"], "cancelled")
    record = UsageRecord.unscoped.get(task=task)
    assert record.accuracy == "estimated"
    assert events_of(task)[-1]["event"] == "agent_execution_completed"
    assert events_of(task)[-1]["data"]["finish_reason"] == "cancelled"
    assert not any(event["data"].get("is_final") for event in events_of(task))


class Worker:
    """Runs the task in a thread, as a worker's Celery does, up to and while the model speaks."""

    def __init__(self, threads: ThreadPoolExecutor, task: Task) -> None:
        self.task = task
        self._end = threads.submit(self._work)
        first_token(task)

    def _work(self) -> None:
        try:
            run_task(str(self.task.pk), self.task.tenant_id)
        finally:
            connection.close()

    def ended(self) -> Task:
        self._end.result(timeout=30)
        self.task.refresh_from_db()
        return self.task


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made
        running.hand_over()


def records_of(task: Task) -> list[tuple[int, int, str]]:
    rows = UsageRecord.unscoped.filter(task=task).order_by("attempt", "call")
    return list(rows.values_list("attempt", "call", "accuracy"))


def test_a_call_is_in_the_ledger_before_it_begins(
    committed_tenant: Tenant, threads: ThreadPoolExecutor
) -> None:
    task = make_run(make_session(make_agent(committed_tenant, model="long")), "Go on.")
    worker = Worker(threads, task)
    record = UsageRecord.unscoped.get(task=task)
    assert (record.attempt, record.call, record.accuracy) == (1, 1, "unknown")
    assert (record.provider, record.model, record.end_user) == ("scripted", "long", "ada")
    running.stop(task.pk, running.StopReason.CANCELLED)
    assert worker.ended().status == "completed"  # nobody has asked the row
    assert records_of(task) == [(1, 1, "estimated")]


@pytest.mark.usefixtures("openai")
def test_every_call_has_its_row(committed_tenant: Tenant) -> None:
    model = "fake-500?fail_times=2&mark=rows"
    task = ask(make_agent(committed_tenant, provider="openai", model=model), "Hello?")
    assert task.status == "completed"
    assert records_of(task) == [(1, 1, "unknown"), (1, 2, "unknown"), (1, 3, "exact")]


@pytest.mark.usefixtures("openai")
def test_the_model_that_answered_in_the_others_place_is_in_the_ledger(committed_tenant: Tenant) -> None:
    busy = "fake-429?retry_after=600&mark=away"
    fallback = {"provider": "openai", "model": "fake"}
    agent = make_agent(committed_tenant, provider="openai", model=busy, fallback=fallback)
    task = ask(agent, "Hello?")
    assert task.status == "completed"
    rows = list(UsageRecord.unscoped.filter(task=task).order_by("call"))
    assert {(row.model, row.accuracy) for row in rows[:-1]} == {(busy, "unknown")}
    assert (rows[-1].model, rows[-1].accuracy) == ("fake", "exact")


def test_a_killed_runs_call_stays_unknown_and_the_next_attempt_has_a_row_of_its_own(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*args: Any) -> None:
        raise Killed

    task = make_run(make_session(make_agent(committed_tenant)), "one two")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(handlers, "_write", die)
        run(task)
    assert records_of(task) == [(1, 1, "unknown")]
    lose_worker(task)
    assert sweeper.end_abandoned() == 1
    assert run(task).status == "completed"
    assert records_of(task) == [(1, 1, "unknown"), (2, 1, "exact")]
    assert [message.text for message in Message.unscoped.filter(task=task)] == ["one two", "one two"]


def test_a_run_that_is_handed_over_goes_on_as_another_attempt(
    committed_tenant: Tenant, threads: ThreadPoolExecutor
) -> None:
    agent = make_agent(committed_tenant, model="long", max_output_tokens=60)
    task = make_run(make_session(agent), "Go on.")
    worker = Worker(threads, task)
    running.hand_over()
    with pytest.raises(Reject):
        worker.ended()
    task.refresh_from_db()
    assert (task.status, task.attempt, task.crashes, task.result) == ("queued", 2, 0, None)
    assert answer_of(task) is None
    assert records_of(task) == [(1, 1, "estimated")]
    run(task)
    assert (task.status, task.attempt) == ("completed", 2)
    assert records_of(task) == [(1, 1, "estimated"), (2, 1, "exact")]
    events = events_of(task)
    again = [event["event"] for event in events].index("task_status_update")
    assert events[again]["data"] == {"status": "queued", "details": {"attempt": 2, "reason": "handed_over"}}
    assert events[again + 1]["event"] == "agent_execution_started"
    assert events[again + 1]["data"]["attempt"] == 2
    said = "".join(event["data"]["token"] for event in events[again + 2 : -1])
    answer = answer_of(task)
    assert answer is not None
    assert said == answer.text == task.result["text"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def test_a_dead_workers_cancelled_run_keeps_what_its_session_heard(
    committed_tenant: Tenant, threads: ThreadPoolExecutor
) -> None:
    """Cancelled, and the worker does not live to say so: the sweeper does, and the callback tells."""
    task = make_run(make_session(make_agent(committed_tenant, model="long")), "Go on.")
    worker = Worker(threads, task)
    assert Task.ask_to_cancel(task.pk, "ada")
    lose_worker(task)
    assert sweeper.end_abandoned() == 1
    task.refresh_from_db()
    assert (task.status, task.cancelled_by, task.error, task.crashes) == ("cancelled", "ada", None, 1)
    text = task.result["text"]
    assert task.result["finish_reason"] == "cancelled"
    assert streamed(task).startswith(text) and text
    answer = answer_of(task)
    assert answer is not None
    assert (answer.text, answer.finish_reason) == (text, "cancelled")
    assert answer.seq in [event["seq"] for event in events_of(task)]
    assert records_of(task) == [(1, 1, "unknown")]
    # The worker was slow, not dead: whatever it does now changes nothing.
    run(Task.unscoped.get(action="websocket.send_message"))
    ending = events_of(task)[-2:]
    assert [event["event"] for event in ending] == ["agent_execution_completed", "task_status_update"]
    assert (ending[0]["data"]["text"], ending[0]["data"]["finish_reason"]) == (text, "cancelled")
    before = (Task.unscoped.filter(pk=task.pk).values().get(), len(events_of(task)))
    heartbeat.beat()
    worker.ended()
    assert (Task.unscoped.filter(pk=task.pk).values().get(), len(events_of(task))) == before
    assert records_of(task) == [(1, 1, "unknown")]
    assert Message.unscoped.filter(task=task).count() == 2


def test_a_slow_workers_attempt_is_fenced_off(committed_tenant: Tenant, threads: ThreadPoolExecutor) -> None:
    """Paused past its lease: its events are refused from the take-over on, and its end is none."""
    agent = make_agent(committed_tenant, model="long", max_output_tokens=40)
    task = make_run(make_session(agent), "Go on.")
    worker = Worker(threads, task)
    lose_worker(task)
    assert sweeper.end_abandoned() == 1
    worker.ended()
    assert (task.status, task.attempt, task.crashes) == ("queued", 2, 1)
    assert answer_of(task) is None
    events = events_of(task)
    assert events[-1]["data"] == {"status": "queued", "details": {"attempt": 2, "reason": "worker_lost"}}
    assert records_of(task) == [(1, 1, "unknown")]
    assert run(task).status == "completed"
    assert records_of(task) == [(1, 1, "unknown"), (2, 1, "exact")]
    names = [event["event"] for event in events_of(task)[len(events) :]]
    assert (names[0], names[-1]) == ("agent_execution_started", "agent_execution_completed")


def test_a_run_without_a_word_that_nobody_ends_is_cancelled_with_its_end(committed_tenant: Tenant) -> None:
    task = make_run(make_session(make_agent(committed_tenant)), "Hello?")
    claim(task)
    assert Task.ask_to_cancel(task.pk, "ada")
    lose_worker(task)
    assert sweeper.end_abandoned() == 1
    task.refresh_from_db()
    assert (task.status, task.result["text"]) == ("cancelled", "")
    assert answer_of(task) is None
    run(Task.unscoped.get(action="websocket.send_message"))
    assert names_of(task) == ["agent_execution_completed", "task_status_update"]


def test_a_dead_run_past_its_time_fails_and_keeps_its_text(
    committed_tenant: Tenant, threads: ThreadPoolExecutor
) -> None:
    task = make_run(make_session(make_agent(committed_tenant, model="long")), "Go on.")
    worker = Worker(threads, task)
    Task.unscoped.filter(pk=task.pk).update(deadline=Now())
    assert sweeper.end_abandoned() == 1
    heartbeat.beat()
    worker.ended()
    assert (task.status, task.result, task.error["type"]) == ("failed", None, "DeadlineExceeded")
    answer = answer_of(task)
    assert answer is not None
    assert answer.text and streamed(task).startswith(answer.text)
    assert answer.finish_reason == "failed"
    run(Task.unscoped.get(action="websocket.send_message"))
    assert names_of(task)[-2:] == ["agent_execution_failed", "task_failed"]


def test_a_run_is_swept_while_valkey_is_away(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(name: str) -> Any:
        raise redis.ConnectionError

    task = make_run(make_session(make_agent(committed_tenant)), "Hello?")
    claim(task)
    assert Task.ask_to_cancel(task.pk, "ada")
    lose_worker(task)
    monkeypatch.setattr(handlers, "running_answer_sync", away)
    assert sweeper.end_abandoned() == 1
    task.refresh_from_db()
    assert (task.status, task.result["text"]) == ("cancelled", "")


@pytest.mark.usefixtures("openai")
def test_an_agent_may_let_a_run_begin_again_after_a_fault(committed_tenant: Tenant) -> None:
    model = "fake-cut?fail_times=1&mark=again"
    agent = make_agent(committed_tenant, provider="openai", model=model, restart_after_fault=True)
    task = make_run(make_session(agent), "Hello?")
    with pytest.raises(Reject):
        run(task)
    task.refresh_from_db()
    assert (task.status, task.attempt, task.crashes) == ("queued", 2, 0)
    assert run(task).status == "completed"
    assert records_of(task) == [(1, 1, "estimated"), (2, 1, "exact")]
    assert [message.role for message in Message.unscoped.filter(task=task)] == ["user", "assistant"]


@pytest.mark.usefixtures("openai")
def test_a_run_does_not_begin_again_for_ever(committed_tenant: Tenant) -> None:
    agent = make_agent(
        committed_tenant, provider="openai", model="fake-cut?mark=ever", restart_after_fault=True
    )
    task = make_run(make_session(agent), "Hello?")
    for _ in range(handlers.MOST_ATTEMPTS - 1):
        with pytest.raises(Reject):
            run(task)
    run(task)
    assert (task.status, task.attempt) == ("failed", handlers.MOST_ATTEMPTS)
    assert [accuracy for _, _, accuracy in records_of(task)] == ["estimated"] * handlers.MOST_ATTEMPTS


def test_no_database_connection_is_held_while_the_model_speaks(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    stream = handlers._stream

    async def spy(*args: Any) -> handlers.Outcome:
        seen.append(open_connections())
        return await stream(*args)

    mine = connections["default"]
    monkeypatch.setattr(handlers, "_stream", spy)

    def open_connections() -> bool:
        return mine.connection is not None

    ask(make_agent(committed_tenant), "Hello?")
    assert seen == [False]


def test_a_lost_task_answers_nobody(committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_run(make_session(make_agent(committed_tenant)), "Hello?")
    stream = handlers._stream

    def take_over() -> None:
        try:
            assert Task.unscoped.get(pk=task.pk).give_back(crashed=True)
            assert Task.claim(task.pk, task.tenant_id, 60) is not None
        finally:
            connection.close()

    async def lose(*args: Any) -> handlers.Outcome:
        outcome = await stream(*args)
        await asyncio.to_thread(take_over)
        return outcome

    monkeypatch.setattr(handlers, "_stream", lose)
    run(task)
    assert (task.status, task.attempt, task.result) == ("processing", 2, None)
    assert answer_of(task) is None
    record = UsageRecord.unscoped.get(task=task)
    assert (record.attempt, record.call, record.accuracy) == (1, 1, "unknown")
    assert "agent_execution_completed" not in names_of(task)


def test_a_run_whose_version_is_gone_fails_and_its_session_hears_of_it(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    task = make_run(make_session(agent), "Hello?")
    Task.unscoped.filter(pk=task.pk).update(payload=task.payload | {"version_id": 10**9})
    run(task)
    assert (task.status, task.error["type"]) == ("failed", "InternalError")
    callback = Task.unscoped.get(action="websocket.send_message")
    assert run(callback).status == "completed"
    assert names_of(task) == ["agent_execution_failed", "task_failed"]


def test_a_request_carries_the_agents_settings(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, temperature=0.5, max_output_tokens=2)
    session = make_session(agent)
    make_message(session, "user", "old", make_task(committed_tenant))
    task = ask(agent, "one two three", session)
    assert task.result["text"] == "one two"
    assert task.result["finish_reason"] == "length"


def test_a_run_cancelled_before_the_provider_was_asked_costs_nothing(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_run(make_session(make_agent(committed_tenant)), "Hello?")
    request_of = handlers.request_of

    def cancelled_meanwhile(context: Any) -> Any:
        assert Task.ask_to_cancel(task.pk, "ada")
        running.stop(task.pk, running.StopReason.CANCELLED)  # as the listener does
        return request_of(context)

    monkeypatch.setattr(handlers, "request_of", cancelled_meanwhile)
    run(task)
    assert (task.status, task.cancelled_by) == ("cancelled", "ada")
    assert (task.result["text"], task.result["finish_reason"]) == ("", "cancelled")
    assert not UsageRecord.unscoped.exists()
    assert answer_of(task) is None


def lose_log(task: Task) -> None:
    name = session_name(task.tenant_id, task.session_id)
    assert valkey.client().delete(log._log(name), log._marks(name))


def test_an_answer_after_the_log_was_lost_goes_on_above_the_session(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    session = make_session(agent)
    first = ask(agent, "one", session)
    before = answer_of(first)
    assert before is not None
    lose_log(first)
    second = ask(agent, "two", session)
    assert events_of(second)[0]["seq"] == before.seq + log.GAP + 1
    after = answer_of(second)
    assert after is not None
    assert after.seq > before.seq + log.GAP


@pytest.mark.parametrize("turns", [1, 2])
def test_the_runs_end_is_told_above_its_frames_when_the_log_is_lost_between(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    agent = make_agent(committed_tenant)
    session = make_session(agent)
    for _ in range(turns - 1):
        ask(agent, "before", session)
    task = make_run(session, "Hello?")
    announce = handlers._announce
    given: list[int] = []

    def lost(run: Any, outcome: handlers.Outcome, status: str) -> None:
        given.append(outcome.last_seq)
        lose_log(task)
        announce(run, outcome, status)

    monkeypatch.setattr(handlers, "_announce", lost)
    run(task)
    [end] = events_of(task)
    assert end["event"] == "agent_execution_completed"
    assert end["seq"] > given[0] > 0
