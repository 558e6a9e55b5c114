"""Runs of tenants with budgets: room is reserved, answers are cut, nothing is overspent, nothing leaks."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from agents.models import Agent
from bench.fake_model import FakeModel, Schedule, answer_text, start
from conversations.models import Message
from core import aio, budgets, ledger, selectors
from core.actions import running, sweeper, worker
from core.actions.bus import execute
from core.actions.worker import run_task
from core.models import AuditEntry, Budget, BudgetUse, ModelPrice, Notice, Task, Tenant, UsageRecord
from core.tenancy import tenant_scope
from execution import accounting, runner
from execution.budget_actions import BudgetDeleteAction
from execution.messages import ChatMessage, ModelRequest, Usage
from tests.execution.test_handlers import Worker, answer_of, ask, events_of, names_of, run
from tests.factories import claim, lose_worker, make_agent, make_key, make_run, make_session, make_tenant
from tests.money import SUMS, wrong_sums


@pytest.fixture(scope="module")
def fake_model() -> Iterator[tuple[str, FakeModel]]:
    model = FakeModel(Schedule(first_token=0.0, interval=0.0, tokens=40))
    runner, base_url = aio.run(start(model))
    yield base_url, model
    aio.run(runner.cleanup())


@pytest.fixture
def books(fake_model: tuple[str, FakeModel], settings: Any) -> FakeModel:
    """The operator's OpenAI is the fake model; its books."""
    base_url, model = fake_model
    settings.PROVIDERS = settings.PROVIDERS | {"openai": (base_url, "a-key")}
    return model


@pytest.fixture
def tenant(committed_tenant: Tenant) -> Iterator[Tenant]:
    yield committed_tenant
    assert sums() == []


def sums() -> list[str]:
    budgets = list(Budget.unscoped.values_list("pk", flat=True))
    with connection.cursor() as cursor:
        cursor.execute(SUMS, [budgets])
        return wrong_sums(cursor.fetchall())


def budget(tenant: Tenant, **fields: Any) -> Budget:
    made: Budget = Budget.unscoped.create(
        tenant=tenant, **{"subject": "tenant", "period": "day", "limit_tokens": 10_000, **fields}
    )
    return made


def price(model: str = "fake*", prompt: str = "1", completion: str = "2", **fields: Any) -> ModelPrice:
    made: ModelPrice = ModelPrice.unscoped.create(
        **{
            "provider": "openai",
            "model": model,
            "prompt": Decimal(prompt),
            "completion": Decimal(completion),
            "valid_from": timezone.now(),
            "source": "console",
            **fields,
        }
    )
    return made


def use() -> BudgetUse:
    found: BudgetUse = BudgetUse.unscoped.get()
    return found


def fake_agent(tenant: Tenant, model: str = "fake", **config: Any) -> Agent:
    return make_agent(tenant, provider="openai", model=model, **config)


def at_once(tasks: list[Task]) -> list[Task]:
    """Run all of them at the same time; gives them as they have ended."""

    def work(task: Task) -> None:
        try:
            run_task(str(task.pk), task.tenant_id)
        finally:
            connection.close()

    with ThreadPoolExecutor(len(tasks)) as threads:
        list(threads.map(work, tasks))
    for task in tasks:
        task.refresh_from_db()
    return tasks


def test_what_a_run_took_is_counted_and_the_rest_is_free(tenant: Tenant, books: FakeModel) -> None:
    budget(tenant)
    task = ask(fake_agent(tenant), "Hello?")
    assert (task.status, task.result["finish_reason"]) == ("completed", "stop")
    record = UsageRecord.unscoped.get(task=task)
    assert (record.accuracy, record.held, record.reserved_tokens) == ("exact", False, 0)
    assert record.charged == [use().pk]
    assert (use().held_tokens, use().spent_tokens) == (0, record.prompt_tokens + record.completion_tokens)
    assert use().spent_tokens == 41


def test_an_answer_is_cut_where_the_budget_ends(tenant: Tenant, books: FakeModel) -> None:
    limit = 100
    made = budget(tenant, limit_tokens=limit)
    agent = fake_agent(tenant, "fake?tokens=2000&mark=cut")
    task = ask(agent, "Hello?")
    assert (task.status, task.error, task.result["finish_reason"]) == ("completed", None, "budget")
    granted = limit - len("Hello?") - 8
    assert task.result["text"] == answer_text(granted)
    answer = answer_of(task)
    assert answer is not None
    assert (answer.text, answer.finish_reason) == (task.result["text"], "budget")
    assert events_of(task)[-1]["data"]["finish_reason"] == "budget"
    record = UsageRecord.unscoped.get(task=task)
    assert (record.accuracy, record.prompt_tokens, record.completion_tokens) == ("exact", 1, granted)
    assert use().spent_tokens == 1 + granted <= limit
    [notice] = Notice.unscoped.filter(event="budget_threshold")
    assert notice.subject == str(made.pk)
    assert notice.body["data"]["threshold"] == 80
    # What is left is too little for another one.
    refused = ask(agent, "Hello?")
    assert (refused.status, refused.error["type"]) == ("failed", "BudgetExhausted")
    assert set(refused.error["details"]) == {"subject", "period", "resets_at", "retry_after"}
    assert names_of(refused) == ["agent_execution_started", "agent_execution_failed"]
    assert not UsageRecord.unscoped.filter(task=refused).exists()
    thresholds = [row.body["data"]["threshold"] for row in Notice.unscoped.filter(event="budget_threshold")]
    assert thresholds == [80, 100]
    ask(agent, "Hello?")
    assert Notice.unscoped.filter(event="budget_threshold").count() == 2


def test_a_model_that_does_not_keep_to_its_bound_is_cut_by_us(tenant: Tenant, books: FakeModel) -> None:
    budget(tenant, limit_tokens=100)
    task = ask(fake_agent(tenant, "fake-endless"), "Hello?")
    assert task.result["finish_reason"] == "budget"
    assert task.result["text"] == answer_text(86)
    assert UsageRecord.unscoped.get(task=task).accuracy == "estimated"
    assert 0 < use().spent_tokens <= 100


def test_an_agents_own_bound_is_no_budgets(tenant: Tenant, books: FakeModel) -> None:
    budget(tenant)
    task = ask(fake_agent(tenant, max_output_tokens=5), "Hello?")
    assert (task.result["finish_reason"], task.result["text"]) == ("length", answer_text(5))


def test_dollars_bound_an_answer_too(tenant: Tenant, books: FakeModel) -> None:
    price(prompt="1", completion="2")
    budget(tenant, limit_tokens=None, limit_cost=Decimal("0.0001"))
    agent = fake_agent(tenant, "fake?tokens=2000&mark=dollars")
    task = ask(agent, "Hello?")
    granted = (100 - 14) // 2  # of 100 millionths of a dollar, 14 for the prompt at most
    assert (task.result["finish_reason"], task.result["text"]) == ("budget", answer_text(granted))
    record = UsageRecord.unscoped.get(task=task)
    assert record.cost == Decimal(1 + 2 * granted) / 1_000_000 == use().spent_cost
    assert record.price == ModelPrice.unscoped.get()


def test_a_budget_in_dollars_takes_no_model_without_a_price(tenant: Tenant, books: FakeModel) -> None:
    budget(tenant, limit_tokens=None, limit_cost=Decimal(1))
    task = ask(fake_agent(tenant), "Hello?")
    assert (task.status, task.error["type"]) == ("failed", "NoPrice")
    assert not UsageRecord.unscoped.exists()


def test_without_a_budget_a_model_without_a_price_costs_nobody_knows_what(
    tenant: Tenant, books: FakeModel
) -> None:
    record = UsageRecord.unscoped.get(task=ask(fake_agent(tenant), "Hello?"))
    assert (record.accuracy, record.cost, record.price, record.charged) == ("exact", None, None, None)


def test_the_price_is_kept_with_the_call(tenant: Tenant, books: FakeModel) -> None:
    old = price(prompt="3", completion="5")
    record = UsageRecord.unscoped.get(task=ask(fake_agent(tenant), "Hello?"))
    assert (record.cost, record.price) == (Decimal("0.000203"), old)


@pytest.mark.parametrize(
    ("fields", "other", "counts"),
    [
        ({"subject": "agent"}, {}, [1, 1]),
        ({"subject": "end_user"}, {}, [2]),
        ({"subject": "end_user", "end_user": "ada"}, {}, [2]),
        ({"subject": "end_user", "end_user": "bob"}, {}, []),
    ],
    ids=["agent", "each end user", "the end user", "another end user"],
)
def test_whose_calls_count(
    tenant: Tenant, books: FakeModel, fields: dict[str, Any], other: dict[str, Any], counts: list[int]
) -> None:
    agents = [fake_agent(tenant), fake_agent(tenant)]
    if fields["subject"] == "agent":
        for agent in agents:
            budget(tenant, agent_id=agent.pk, **fields)
    else:
        budget(tenant, **fields)
    for agent in agents:
        ask(agent, "Hello?")
    found = BudgetUse.unscoped.order_by("budget_id").values_list("spent_tokens", flat=True)
    assert list(found) == [41 * count for count in counts]


def test_every_budget_must_have_room(tenant: Tenant, books: FakeModel) -> None:
    agent = fake_agent(tenant)
    budget(tenant)
    budget(tenant, subject="agent", agent_id=agent.pk, limit_tokens=60)
    task = ask(agent, "Hello?")
    assert (task.status, task.result["finish_reason"]) == ("completed", "stop")
    assert list(BudgetUse.unscoped.values_list("held_tokens", "spent_tokens")) == [(0, 41)] * 2
    assert ask(agent, "Hello?").error["type"] == "BudgetExhausted"
    assert ask(fake_agent(tenant), "Hello?").status == "completed"


@pytest.mark.parametrize(
    ("model", "kept"),
    [("fake-400", False), ("fake-401", False), ("fake-garbage?at=0", True)],
)
def test_a_refused_call_counts_nothing_and_one_that_nobody_knows_of_all_that_it_held(
    tenant: Tenant, books: FakeModel, model: str, kept: bool
) -> None:
    budget(tenant)
    task = ask(fake_agent(tenant, model, max_output_tokens=100), "Hello?")
    assert task.status == "failed"
    record = UsageRecord.unscoped.get(task=task)
    assert (record.accuracy, record.held) == ("unknown", False)
    assert record.reserved_tokens == use().spent_tokens == (114 if kept else 0)
    assert use().held_tokens == 0


def test_each_try_gives_back_what_it_held(tenant: Tenant, books: FakeModel) -> None:
    # Room for one try at a time.
    budget(tenant, limit_tokens=160)
    agent = fake_agent(tenant, "fake-500?fail_times=2&mark=tries", max_output_tokens=100)
    task = ask(agent, "Hello?")
    assert (task.status, task.result["finish_reason"]) == ("completed", "stop")
    rows = UsageRecord.unscoped.filter(task=task).order_by("call").values_list("call", "accuracy", "held")
    assert list(rows) == [(1, "unknown", False), (2, "unknown", False), (3, "exact", False)]
    assert (use().held_tokens, use().spent_tokens) == (0, 41)


def test_the_model_that_answers_in_the_others_place_is_reserved_at_its_own_price(
    tenant: Tenant, books: FakeModel
) -> None:
    price("fake", prompt="100", completion="100")
    price("fake-429*", prompt="1", completion="1")
    budget(tenant, limit_tokens=None, limit_cost=Decimal("0.02"))
    busy = "fake-429?retry_after=600&mark=place"
    agent = fake_agent(tenant, busy, fallback={"provider": "openai", "model": "fake"}, max_output_tokens=150)
    task = ask(agent, "Hello?")
    assert (task.status, task.result["finish_reason"]) == ("completed", "stop")
    assert use().spent_cost == Decimal("0.0041")


def test_a_first_call_that_another_model_gets_is_written_and_reserved_anew(tenant: Tenant) -> None:
    """As when the first one's circuit is open."""
    price("cheap", prompt="0", completion="1")
    price("dear", prompt="0", completion="100")
    budget(tenant, limit_tokens=None, limit_cost=Decimal(1))
    task = claim(make_run(make_session(make_agent(tenant)), "Hello?"))
    request = ModelRequest("cheap", (ChatMessage("user", "Hello?"),), max_output_tokens=1_000)
    with tenant_scope(tenant.pk):
        calls = accounting.AttemptCalls(task, request, agent_id=uuid.uuid4(), session_id="s", end_user="")
        calls.write("openai", "cheap")
        assert use().held_cost == Decimal("0.001")
        assert aio.run(calls.begin("openai", "dear")) == 1_000
        assert use().held_cost == Decimal("0.1")
        assert list(UsageRecord.objects.values_list("call", "model")) == [(1, "dear")]
        with transaction.atomic():
            calls.settle(Usage(1, 10))
    assert (use().held_cost, use().spent_cost) == (0, Decimal("0.001"))


def test_a_cancelled_run_counts_what_it_has_said(tenant: Tenant) -> None:
    budget(tenant)
    task = make_run(make_session(make_agent(tenant, model="long")), "Go on.")
    with ThreadPoolExecutor(1) as threads:
        worker = Worker(threads, task)
        assert use().held_tokens == 14 + accounting.UNBOUNDED_OUTPUT
        running.stop(task.pk, running.StopReason.CANCELLED)
        assert worker.ended().status == "completed"
    record = UsageRecord.unscoped.get(task=task)
    assert (record.accuracy, record.held) == ("estimated", False)
    assert (use().held_tokens, use().spent_tokens) == (
        0,
        record.prompt_tokens + record.completion_tokens,
    )


class Away:
    """In the place of a function: the database is away the first time."""

    def __init__(self, function: Any, before: int = 0) -> None:
        self._function, self._left = function, before

    def __call__(self, *args: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left == -1:
            raise OperationalError("away")
        return self._function(*args, **options)


@pytest.mark.parametrize("settled", [1, 2], ids=["once", "again"])
def test_a_run_cancelled_before_the_provider_was_asked_holds_nothing(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, settled: int
) -> None:
    """Also where its first settling was rolled back."""
    budget(tenant)
    monkeypatch.setattr(worker, "AWAY_SECONDS", 0.01)
    if settled == 2:
        monkeypatch.setattr(worker, "follow_up", Away(worker.follow_up))
    task = make_run(make_session(make_agent(tenant)), "Hello?")
    write = accounting.AttemptCalls.write

    def cancelled_meanwhile(self: Any, *args: Any) -> None:
        write(self, *args)
        assert use().held_tokens > 0
        assert Task.ask_to_cancel(task.pk, "ada")
        running.stop(task.pk, running.StopReason.CANCELLED)  # as the listener does

    monkeypatch.setattr(accounting.AttemptCalls, "write", cancelled_meanwhile)
    assert run(task).status == "cancelled"
    assert not UsageRecord.unscoped.exists()
    assert (use().held_tokens, use().spent_tokens) == (0, 0)


@pytest.mark.parametrize("bounded", [False, True])
def test_an_attempt_that_is_begun_again_has_a_row_for_each_call(
    tenant: Tenant, books: FakeModel, monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    """The database goes away behind a call that has failed, for longer than its retry waits."""
    if bounded:
        budget(tenant)
    monkeypatch.setattr(worker, "AWAY_SECONDS", 0.01)
    monkeypatch.setattr(runner, "PAUSE", 0.01)
    monkeypatch.setattr(accounting, "TRIES", 1)
    monkeypatch.setattr(accounting, "open_call", Away(ledger.open_call, before=1))
    model = f"fake-500?fail_times=1&mark={uuid.uuid4().hex}"
    task = ask(fake_agent(tenant, model), "Hello?")
    assert task.status == "completed"
    assert [entry.status for entry in books._books if entry.model == model] == [500, 200]
    rows = UsageRecord.unscoped.filter(task=task).order_by("call").values_list("call", "accuracy")
    assert list(rows) == [(1, "unknown"), (2, "exact")]


class Killed(BaseException):
    """As by kill -9, at this line."""


def die(*args: Any) -> None:
    raise Killed


def test_what_a_killed_runs_call_held_is_counted_whole(
    tenant: Tenant, books: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget(tenant)
    task = make_run(make_session(fake_agent(tenant, max_output_tokens=100)), "Hello?")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(accounting.AttemptCalls, "settle", die)
        run(task)
    assert (use().held_tokens, use().spent_tokens) == (114, 0)
    lose_worker(task)
    assert sweeper.end_abandoned() == 1
    assert (use().held_tokens, use().spent_tokens) == (0, 114)
    assert UsageRecord.unscoped.get(task=task).accuracy == "unknown"
    assert run(task).status == "completed"
    assert (use().held_tokens, use().spent_tokens) == (0, 114 + 41)


def test_a_sweeper_that_is_killed_after_the_taking_over_leaves_nothing_held(
    tenant: Tenant, books: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget(tenant)
    task = make_run(make_session(fake_agent(tenant, max_output_tokens=100)), "Hello?")
    with monkeypatch.context() as patched:
        patched.setattr(accounting.AttemptCalls, "settle", die)
        patched.setattr("execution.handlers.runs.keep_calls", die)
        with pytest.raises(Killed):
            run(task)
        lose_worker(task)
        with pytest.raises(Killed):
            sweeper.end_abandoned()
    assert use().held_tokens == 114
    ledger.keep_left()
    assert use().held_tokens == 114  # somebody may still be at it
    UsageRecord.unscoped.update(created_at=timezone.now() - 2 * ledger.LEFT)
    ledger.keep_left()
    assert (use().held_tokens, use().spent_tokens) == (0, 114)


def test_a_call_under_way_keeps_what_it_holds(tenant: Tenant) -> None:
    budget(tenant)
    task = make_run(make_session(make_agent(tenant, model="long", max_output_tokens=60)), "Go on.")
    with ThreadPoolExecutor(1) as threads:
        worker = Worker(threads, task)
        UsageRecord.unscoped.update(created_at=timezone.now() - 2 * ledger.LEFT)
        ledger.keep_left()
        assert (use().held_tokens, use().spent_tokens) == (74, 0)
        worker.ended()


@pytest.mark.parametrize(("model", "spent"), [("fake", 41), ("fake-garbage?at=0", 114)])
def test_a_call_is_settled_once_whoever_comes_late(
    tenant: Tenant, books: FakeModel, model: str, spent: int
) -> None:
    budget(tenant)
    task = ask(fake_agent(tenant, model, max_output_tokens=100), "Hello?")
    with tenant_scope(tenant.pk):
        ledger.keep_calls(task)
        ledger.fail_call(task, 1, refused=False)
        ledger.fail_call(task, 1, refused=True)
    assert (use().held_tokens, use().spent_tokens) == (0, spent)


def test_a_call_waits_for_what_others_hold(
    tenant: Tenant, books: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one run: the other one begins when the first has given back what it did not take."""
    monkeypatch.setattr(accounting, "ROOM_PAUSE", 0.01)
    budget(tenant, limit_tokens=2_000)
    agent = fake_agent(tenant, "fake?tokens=100&interval=0.01", max_output_tokens=1_500)
    tasks = [make_run(make_session(agent), "Hello?") for _ in range(4)]

    done = at_once(tasks)
    assert [task.result["finish_reason"] for task in done] == ["stop"] * 4
    assert (use().held_tokens, use().spent_tokens) == (0, 4 * 101)


@pytest.mark.parametrize(("bound", "least"), [(320, 9_000), (None, 300)])
def test_100_chats_at_once_overspend_nothing(
    tenant: Tenant, books: FakeModel, monkeypatch: pytest.MonkeyPatch, bound: int | None, least: int
) -> None:
    """L2: a budget of 10,000 tokens, and the provider's own count of what was taken."""
    monkeypatch.setattr(accounting, "ROOM_PAUSE", 0.05)
    monkeypatch.setattr(accounting, "ROOM_SECONDS", 2.0)
    budget(tenant, limit_tokens=10_000)
    model = f"fake?tokens=300&mark={uuid.uuid4().hex}"
    agent = fake_agent(tenant, model, max_output_tokens=bound)
    tasks = [make_run(make_session(agent), "Hello?") for _ in range(100)]

    done = at_once(tasks)
    reported = [entry.usage for entry in books._books if entry.model == model]
    taken = sum(usage["prompt_tokens"] + usage["completion_tokens"] for usage in reported if usage)
    assert least < taken <= 10_000
    assert (use().held_tokens, use().spent_tokens) == (0, taken)
    ends = {task.error["type"] if task.error else task.result["finish_reason"] for task in done}
    assert {"BudgetExhausted"} <= ends <= {"stop", "budget", "BudgetExhausted"}


def test_many_budgets_at_once_are_locked_in_one_order(
    tenant: Tenant, books: FakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accounting, "ROOM_PAUSE", 0.05)
    agents = [fake_agent(tenant, max_output_tokens=50) for _ in range(3)]
    for period in ("day", "month", "total"):
        budget(tenant, period=period, limit_tokens=10**6)
        budget(tenant, subject="end_user", period=period, limit_tokens=10**6)
        for agent in reversed(agents):
            budget(tenant, subject="agent", agent_id=agent.pk, period=period, limit_tokens=10**6)
    tasks = [make_run(make_session(agents[number % 3]), "Hello?") for number in range(60)]
    for task in at_once(tasks):
        assert task.status == "completed"
    assert "deadlock" not in caplog.text
    spent = BudgetUse.unscoped.filter(budget__subject="tenant").values_list("held_tokens", "spent_tokens")
    assert list(spent) == [(0, 60 * 41)] * 3


# --- over HTTP -------------------------------------------------------------------------------------


def post(path: str, body: dict[str, Any], key: str = "", method: str = "post") -> Any:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    call = getattr(Client(headers=headers), method)
    return call(path, body, content_type="application/json") if method != "get" else call(path)


def test_a_new_message_is_refused_when_the_budget_is_used_up(tenant: Tenant, books: FakeModel) -> None:
    budget(tenant, limit_tokens=60)
    agent = fake_agent(tenant)
    body = {"agent_id": str(agent.pk), "message": "Hello?"}
    assert post("/api/v1/chat/message", body).status_code == 202
    run(Task.unscoped.get(action="agent.execute"))
    answer = post("/api/v1/chat/message", body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "BudgetExhausted")
    details = answer.json()["error"]["details"]
    assert (details["subject"], details["period"]) == ("tenant", "day")
    ends = datetime.datetime.fromisoformat(details["resets_at"])
    left = (ends - timezone.now()).total_seconds()
    assert left - 5 < int(answer.headers["Retry-After"]) <= left + 5
    assert Task.unscoped.filter(action="agent.execute").count() == 1
    # Another tenant's budget is its own.
    other = fake_agent(make_tenant())
    assert post("/api/v1/chat/message", body | {"agent_id": str(other.pk)}).status_code == 202
    Budget.unscoped.update(limit_tokens=1_000)
    assert post("/api/v1/chat/message", body).status_code == 202


def test_a_total_that_is_used_up_says_a_day(tenant: Tenant, books: FakeModel) -> None:
    budget(tenant, limit_tokens=10, period="total")
    answer = post("/api/v1/chat/message", {"agent_id": str(fake_agent(tenant).pk), "message": "Hello?"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, str(24 * 60 * 60))
    assert answer.json()["error"]["details"]["resets_at"] is None


def test_what_holds_others_up_does_not_refuse_a_new_message(tenant: Tenant, books: FakeModel) -> None:
    budget(tenant, limit_tokens=9_000)
    agent = make_agent(tenant, model="long")
    with ThreadPoolExecutor(1) as threads:
        worker = Worker(threads, make_run(make_session(agent), "Go on."))
        assert post("/api/v1/chat/message", {"agent_id": str(agent.pk), "message": "?"}).status_code == 202
        running.stop(worker.task.pk, running.StopReason.CANCELLED)
        worker.ended()


@pytest.mark.parametrize("lifted_first", [True, False])
def test_a_budget_is_lifted_while_a_call_begins(tenant: Tenant, lifted_first: bool) -> None:
    made = budget(tenant)

    def lift() -> None:
        execute(BudgetDeleteAction(budget_id=made.pk))

    def begin() -> None:
        assert len(budgets.locked(tenant.pk, uuid.uuid4(), "")) == (0 if lifted_first else 1)

    first, second = (lift, begin) if lifted_first else (begin, lift)

    def later() -> None:
        try:
            with tenant_scope(tenant.pk), transaction.atomic():
                second()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads, tenant_scope(tenant.pk):
        with transaction.atomic(), connection.cursor() as cursor:
            first()
            waiting, deadline = threads.submit(later), time.monotonic() + 20
            cursor.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
            while not waiting.done() and not cursor.fetchall():
                assert time.monotonic() < deadline
                cursor.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
        waiting.result(timeout=20)
        assert (Budget.objects.count(), BudgetUse.objects.count()) == (0, 0)


def test_budgets_are_made_read_changed_and_lifted(tenant: Tenant, books: FakeModel) -> None:
    _, key = make_key(tenant)
    agent = fake_agent(tenant)
    ask(agent, "Hello?")  # earlier on the same day
    path = "/api/v1/budgets"
    body = {"subject": "agent", "agent_id": str(agent.pk), "period": "month", "limit_tokens": 100}
    made = post(path, body, key)
    assert made.status_code == 201
    resource = made.json()
    assert set(resource) == {
        *("budget_id", "subject", "agent_id", "end_user", "period", "limit_tokens", "limit_cost"),
        *("locked", "used", "created_at", "updated_at"),
    }
    assert resource["used"]["tokens"] == 41
    BudgetUse.unscoped.update(spent_tokens=0)  # no record names what came before the budget
    selectors._limits.clear()  # as a second does
    ask(agent, "Hello?")
    one = f"{path}/{resource['budget_id']}"
    assert post(one, {}, key, "get").json()["used"]["tokens"] == 41
    assert [item["budget_id"] for item in post(path, {}, key, "get").json()["items"]] == [
        resource["budget_id"]
    ]
    assert post(path, body, key).json()["error"]["type"] == "BudgetExists"
    changed = post(one, {"limit_tokens": None, "limit_cost": "1.5"}, key, "patch").json()
    assert (changed["limit_tokens"], changed["limit_cost"]) == (None, "1.5")
    assert post(one, {"limit_cost": None}, key, "patch").status_code == 422
    assert post(one, {}, key, "delete").status_code == 204
    assert post(one, {}, key, "get").status_code == 404
    verbs = AuditEntry.unscoped.filter(object_type="budget").order_by("pk").values_list("verb", flat=True)
    assert list(verbs) == ["budget.create", "budget.update", "budget.delete"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"limit_tokens": 0},
        {"limit_cost": "0"},
        {"limit_cost": "NaN"},
        {"limit_tokens": 1, "subject": "agent"},
        {"limit_tokens": 1, "end_user": "ada"},
        {"limit_tokens": 1, "period": "week"},
        {"limit_tokens": 1, "locked": True},
        {"limit_tokens": 1, "by_operator": True},
        {"limit_tokens": 1, "agent_id": "7"},
        {"limit_tokens": 1, "subject": "end_user", "end_user": "a\0"},
    ],
    ids=str,
)
def test_a_budget_must_make_sense(tenant: Tenant, fields: dict[str, Any]) -> None:
    _, key = make_key(tenant)
    answer = post("/api/v1/budgets", {"subject": "tenant", "period": "day", **fields}, key)
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "ValidationFailed")


def test_nobody_sees_or_bounds_what_is_not_theirs(tenant: Tenant) -> None:
    other = make_tenant()
    _, key = make_key(other)
    _, reader = make_key(tenant, ("usage:read",))
    theirs = budget(tenant)
    path = f"/api/v1/budgets/{theirs.pk}"
    for method, body in (("get", {}), ("patch", {"limit_tokens": 1}), ("delete", {})):
        assert post(path, body, key, method).status_code == 404
    body = {"subject": "agent", "agent_id": str(make_agent(tenant).pk), "period": "day", "limit_tokens": 1}
    assert post("/api/v1/budgets", body, key).json()["error"]["type"] == "AgentNotFound"
    assert post("/api/v1/budgets", {}, key, "get").json()["items"] == []
    assert post(path, {"limit_tokens": 1}, reader, "patch").status_code == 403
    assert post(path, {}, "", "get").status_code == 401


def test_the_operators_budget_is_the_operators(tenant: Tenant) -> None:
    _, key = make_key(tenant)
    path = f"/api/v1/budgets/{budget(tenant, locked=True).pk}"
    assert post(path, {}, key, "get").json()["locked"] is True
    for method in ("patch", "delete"):
        answer = post(path, {"limit_tokens": 10**9} if method == "patch" else {}, key, method)
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "BudgetLocked")


def test_a_tenant_without_budgets_pays_nothing_for_them(tenant: Tenant, books: FakeModel) -> None:
    """Its ledger is two statements a turn, as before there were budgets: the row, and what it took."""
    agent = fake_agent(tenant)
    ask(agent, "Hello?")  # prices and limits are known from here on
    task = make_run(make_session(agent), "Hello?")
    with CaptureQueriesContext(connection) as queries:
        run_task(str(task.pk), task.tenant_id)
    money = ("core_usagerecord", "core_budget", "core_modelprice")
    spoken = [query["sql"] for query in queries if any(table in query["sql"] for table in money)]
    assert [sql.split()[0] for sql in spoken] == ["INSERT", "UPDATE"]
    body = {"agent_id": str(agent.pk), "message": "Hello?"}
    with CaptureQueriesContext(connection) as queries:
        assert post("/api/v1/chat/message", body).status_code == 202
    assert not [query["sql"] for query in queries if any(table in query["sql"] for table in money)]


@pytest.mark.parametrize("count", [1, 3])
def test_with_budgets_it_is_a_few_more_however_many(tenant: Tenant, books: FakeModel, count: int) -> None:
    """The budgets are looked up and locked, the room is held in the row's own statement, and given back."""
    agent = fake_agent(tenant)
    for period in ("day", "month", "total")[:count]:
        budget(tenant, period=period)
    ask(agent, "Hello?")
    task = make_run(make_session(agent), "Hello?")
    with CaptureQueriesContext(connection) as queries:
        run_task(str(task.pk), task.tenant_id)
    spoken = [query["sql"] for query in queries if "core_usagerecord" in query["sql"]]
    locking = [query["sql"] for query in queries if "INSERT INTO core_budgetuse" in query["sql"]]
    assert (len(locking), len(spoken)) == (1, 3)


def test_a_deleted_task_leaves_its_money(tenant: Tenant, books: FakeModel) -> None:
    task = ask(fake_agent(tenant), "Hello?")
    with tenant_scope(tenant.pk):
        Message.objects.filter(task=task).delete()
        task.delete()
    assert list(UsageRecord.unscoped.values_list("task", "completion_tokens")) == [(None, 40)]
