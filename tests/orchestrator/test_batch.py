"""Batches: taken whole or not at all, fed a few at a time, counted once, stopped and forgotten."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test import Client

from agents.models import Agent
from agents.selectors import _live
from core import aio
from core.actions import sweeper
from core.actions.bus import execute
from core.actions.suspension import TenantSuspendAction
from core.actions.tasks import TaskCancelAction, TaskRetryAction
from core.actions.worker import run_task
from core.models import AuditEntry, Notice, Task, Tenant, Tier, UsageRecord
from core.models.task import CLAIMABLE
from core.tenancy import tenant_scope
from execution.actions import ExecuteAgentAction
from nooble.celery import app
from orchestrator.batches import lines, results, rounds
from orchestrator.batches.actions import BatchCancelAction, BatchFeedAction
from orchestrator.handlers import batches
from orchestrator.models import Batch, BatchItem, IdempotencyKey
from tests.api import Api
from tests.factories import claim, lose_worker, make_agent, make_key, make_tenant

BATCH = "/api/v1/batch"
FEED, RUN = BatchFeedAction.verb, ExecuteAgentAction.verb
TYPES = ("application/jsonl", "application/x-ndjson")


@pytest.fixture
def api(committed_tenant: Tenant) -> Api:
    Tier.objects.filter(pk=committed_tenant.tier_id).update(max_running=1_000)
    return Api(committed_tenant)


@pytest.fixture
def agent(api: Api) -> Agent:
    return make_agent(api.tenant)


def items(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"custom_id": f"c{n}", "message": f"Question {n}", **fields} for n in range(1, count + 1)]


def begin(api: Api, agent: Agent, count: int = 3, **fields: Any) -> Batch:
    body = {"agent_id": str(agent.pk), "items": items(count, **fields)}
    made = api("POST", BATCH, body, expect=202)
    batch: Batch = Batch.unscoped.get(pk=made["batch_id"])
    return batch


def post_lines(
    api: Api, text: str | bytes, query: str = "", kind: str = TYPES[0], **headers: str
) -> tuple[int, Any]:
    headers["authorization"] = f"Bearer {make_key(api.tenant)[1]}"
    answer = Client().generic("POST", BATCH + query, text, content_type=kind, headers=headers)
    return answer.status_code, answer.json()


def waiting(tenant: Tenant, verb: str) -> list[Task]:
    rows = Task.unscoped.filter(tenant=tenant, action=verb, status__in=CLAIMABLE)
    return list(rows.order_by("ordinal"))


def run(task: Task) -> Task:
    run_task(str(task.pk), task.tenant_id)
    task.refresh_from_db()
    return task


def feed(tenant: Tenant) -> None:
    """What the workers of callbacks do."""
    while tasks := waiting(tenant, FEED):
        for task in tasks:
            assert run(task).status == "completed", task.error


def work(tenant: Tenant) -> None:
    """Everything that there is to do."""
    while tasks := [*waiting(tenant, FEED), *waiting(tenant, RUN)]:
        for task in tasks:
            run(task)


def state(api: Api, batch: Batch) -> dict[str, Any]:
    shown: dict[str, Any] = api("GET", f"{BATCH}/{batch.pk}")
    return shown


def counts(api: Api, batch: Batch) -> tuple[str, int, int, int, int]:
    shown = state(api, batch)
    assert shown["done"] == shown["succeeded"] + shown["failed"] + shown["cancelled"]
    rows = list(BatchItem.unscoped.filter(batch=batch).values_list("status", flat=True))
    for status, name in (("completed", "succeeded"), ("failed", "failed"), ("cancelled", "cancelled")):
        assert rows.count(status) == shown[name]
    return (shown["status"], shown["total"], shown["succeeded"], shown["failed"], shown["cancelled"])


def results_of(api: Api, batch: Batch, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api("GET", f"{BATCH}/{batch.pk}/results{query}")["items"]
    return found


def file_of(api: Api, batch: Batch, query: str = "?format=jsonl", **headers: str) -> tuple[Any, list[Any]]:
    headers["authorization"] = f"Bearer {make_key(api.tenant)[1]}"
    answer: Any = Client().get(f"{BATCH}/{batch.pk}/results{query}", headers=headers)
    assert answer.status_code == 200

    async def whole() -> bytes:
        return b"".join([piece async for piece in answer])

    return answer, [json.loads(line) for line in aio.run(whole()).splitlines()]


# --- From the request to the last result -----------------------------------------------------------


def test_a_batch_is_worked_through(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 3, metadata={"row": 1}, user_id="ada")
    assert state(api, batch) == {
        "batch_id": str(batch.pk),
        "agent_id": str(agent.pk),
        "status": "processing",
        "total": 3,
        "done": 0,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 0,
        "created_at": state(api, batch)["created_at"],
        "finished_at": None,
        "results_url": f"http://testserver{BATCH}/{batch.pk}/results",
    }
    assert results_of(api, batch) == []
    feed(api.tenant)
    tasks = waiting(api.tenant, RUN)
    assert [task.queue for task in tasks] == [f"agent:{api.tenant.pk}:execute:low"] * 3
    assert {(task.session_id, task.agent_id, task.payload["end_user"]) for task in tasks} == {
        ("", agent.pk, "ada")
    }
    work(api.tenant)
    assert counts(api, batch) == ("completed", 3, 3, 0, 0)
    assert state(api, batch)["finished_at"] is not None
    found = results_of(api, batch)
    assert [(one["position"], one["custom_id"], one["output"]["text"]) for one in found] == [
        (n, f"c{n}", f"Question {n}") for n in (1, 2, 3)
    ]
    assert {(one["status"], one["error"], one["metadata"]["row"]) for one in found} == {
        ("completed", None, 1)
    }
    assert [one["task_id"] for one in found] == [str(task.pk) for task in tasks]
    assert UsageRecord.unscoped.filter(task__in=tasks, end_user="ada").count() == 3


def test_its_runs_belong_to_the_request(api: Api, agent: Agent) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"x-request-id": "import-7", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    post_lines(api, "\n".join(['{"message": "a"}'] * 20), f"?agent_id={agent.pk}", **headers)
    begin(api, agent, 5)
    work(api.tenant)
    runs = Task.unscoped.filter(tenant=api.tenant, action=RUN).order_by("ordinal")
    assert [run.request_id == "import-7" for run in runs] == [True] * 20 + [False] * 5
    assert [trace in run.traceparent for run in runs] == [True] * 20 + [False] * 5


def test_its_end_is_told_once(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 2)
    work(api.tenant)
    told = Notice.unscoped.get(subject=str(batch.pk))
    assert told.event == "batch_completed"
    assert told.body["data"] == {
        "batch_id": str(batch.pk),
        "status": "completed",
        "total": 2,
        "succeeded": 2,
        "failed": 0,
        "cancelled": 0,
    }
    for _ in range(2):
        with tenant_scope(api.tenant.pk):
            execute(BatchFeedAction())
    assert Notice.unscoped.filter(subject=str(batch.pk)).count() == 1
    assert counts(api, batch) == ("completed", 2, 2, 0, 0)


def test_a_failed_item_is_a_result_like_others(api: Api, agent: Agent) -> None:
    broken = make_agent(api.tenant, provider="groq", model="none")
    body = [{"message": "Good"}, {"message": "Bad", "agent_id": str(broken.pk)}]
    made = api("POST", BATCH, {"agent_id": str(agent.pk), "items": body}, expect=202)
    batch = Batch.unscoped.get(pk=made["batch_id"])
    work(api.tenant)
    assert counts(api, batch) == ("completed", 2, 1, 1, 0)
    good, bad = results_of(api, batch)
    assert (good["status"], good["custom_id"], good["error"]) == ("completed", None, None)
    task = Task.unscoped.get(pk=bad["task_id"])
    assert (bad["status"], bad["output"], bad["error"]) == ("failed", None, task.error)


def test_messages_and_options_reach_the_run(api: Api, agent: Agent) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    options = {"temperature": 0.5, "stop": ["."]}
    body = {"agent_id": str(agent.pk), "items": [{"messages": messages, "options": options}]}
    api("POST", BATCH, body, expect=202)
    feed(api.tenant)
    [task] = waiting(api.tenant, RUN)
    assert task.payload["messages"] == messages
    assert task.payload["options"] == options


def test_all_items_answer_as_the_version_that_was_published_then(api: Api, agent: Agent) -> None:
    begin(api, agent, 2)
    api("PATCH", f"/api/v1/agents/{agent.pk}", {"config": {"max_turns": 3}})
    feed(api.tenant)
    assert {task.payload["version_id"] for task in waiting(api.tenant, RUN)} == {agent.version_id}


# --- Results ---------------------------------------------------------------------------------------


def test_results_are_there_at_any_time_in_the_order_of_the_items(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 5)
    feed(api.tenant)
    tasks = waiting(api.tenant, RUN)
    for number in (4, 1, 2):
        run(tasks[number])
    feed(api.tenant)
    assert counts(api, batch) == ("processing", 5, 3, 0, 0)
    assert [one["position"] for one in results_of(api, batch)] == [2, 3, 5]
    page = api("GET", f"{BATCH}/{batch.pk}/results?limit=2")
    assert ([one["position"] for one in page["items"]], page["next"]) == ([2, 3], "3")
    page = api("GET", f"{BATCH}/{batch.pk}/results?limit=2&cursor=3")
    assert ([one["position"] for one in page["items"]], page["next"]) == ([5], None)


def test_results_are_written_as_lines(api: Api, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "SLICE", 2)
    batch = begin(api, agent, 5)
    _answer, found = file_of(api, batch)
    assert found == []
    work(api.tenant)
    answer, found = file_of(api, batch)
    assert found == results_of(api, batch)
    assert [one["position"] for one in found] == [1, 2, 3, 4, 5]
    assert answer["Content-Type"] == "application/jsonl"
    assert answer["Content-Disposition"] == f'attachment; filename="batch-{batch.pk}.jsonl"'
    for kind in TYPES:
        assert file_of(api, batch, "", accept=kind)[1] == found


def test_batches_are_listed_the_newest_first(api: Api, agent: Agent) -> None:
    made = [begin(api, agent, 1) for _ in range(3)]
    made.sort(key=lambda batch: batch.pk, reverse=True)
    page = api("GET", f"{BATCH}?limit=2")
    assert [one["batch_id"] for one in page["items"]] == [str(batch.pk) for batch in made[:2]]
    rest = api("GET", f"{BATCH}?cursor={page['next']}")
    assert ([one["batch_id"] for one in rest["items"]], rest["next"]) == ([str(made[2].pk)], None)
    work(api.tenant)
    assert api("GET", f"{BATCH}?status=processing")["items"] == []
    assert len(api("GET", f"{BATCH}?status=completed")["items"]) == 3
    api("GET", f"{BATCH}?status=failed", expect=422)


# --- What is taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_lines_are_items(api: Api, agent: Agent, kind: str) -> None:
    text = '{"custom_id": "a", "message": "One"}\r\n\n  \n{"message": "Two"}\n'
    status, made = post_lines(api, text, f"?agent_id={agent.pk}", kind)
    assert (status, made["total"], made["agent_id"]) == (202, 2, str(agent.pk))
    work(api.tenant)
    found = results_of(api, Batch.unscoped.get(pk=made["batch_id"]))
    assert [(one["custom_id"], one["output"]["text"]) for one in found] == [("a", "One"), (None, "Two")]


def openai_line(number: int, model: str, **body: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": f"Q{number}"}], **body}
    line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line)


def test_lines_of_the_openai_batch_api_are_items(api: Api, agent: Agent) -> None:
    text = "\n".join([openai_line(1, agent.slug, max_tokens=7, user="ada"), openai_line(2, str(agent.pk))])
    status, made = post_lines(api, text)
    assert (status, made["total"], made["agent_id"]) == (202, 2, None)
    feed(api.tenant)
    first, second = waiting(api.tenant, RUN)
    assert (first.payload["options"], first.payload["end_user"]) == ({"max_output_tokens": 7}, "ada")
    assert [task.agent_id for task in (first, second)] == [agent.pk, agent.pk]
    work(api.tenant)
    found = results_of(api, Batch.unscoped.get(pk=made["batch_id"]))
    assert [(one["custom_id"], one["output"]["text"]) for one in found] == [("r1", "Q1"), ("r2", "Q2")]


def test_every_line_is_looked_at_before_anything_is_stored(api: Api, agent: Agent) -> None:
    foreign = make_agent(make_tenant())
    text = "\n".join(
        [
            '{"message": "Good"}',
            "{not json}",
            '{"message": "", "colour": 1}',
            "",
            '{"message": "a", "messages": [{"role": "user", "content": "b"}]}',
            f'{{"message": "a", "agent_id": "{foreign.pk}"}}',
            '"text"',
            '{"custom_id": "twice", "message": "a"}',
            '{"custom_id": "twice", "message": "a"}',
            '{"message": "\\u0000"}',
            openai_line(1, agent.slug, stream=True),
            openai_line(2, agent.slug, seed=3),
            openai_line(3, "no-such-agent"),
        ]
    )
    status, refused = post_lines(api, text, f"?agent_id={agent.pk}")
    details = refused["error"]["details"]
    assert (status, refused["error"]["type"]) == (422, "ValidationFailed")
    assert set(details) == {
        "lines.2",
        "lines.3.message",
        "lines.3.colour",
        "lines.5",
        "lines.7",
        "lines.9.custom_id",
        "lines.10",
        "lines.11.body.stream",
        "lines.12.body.seed",
    }
    assert details["lines.9.custom_id"] == "the same as of lines.8"
    # What depends on the tenant's agents is looked at when every line can be read.
    text = "\n".join([f'{{"message": "a", "agent_id": "{foreign.pk}"}}', openai_line(3, "no-such-agent")])
    status, refused = post_lines(api, text)
    assert (status, set(refused["error"]["details"])) == (422, {"lines.1", "lines.2"})
    assert not Batch.unscoped.filter(tenant=api.tenant).exists()
    assert not Task.unscoped.filter(tenant=api.tenant, action=FEED).exists()


def test_items_of_a_list_are_named_by_their_place(api: Api, agent: Agent) -> None:
    small = make_agent(api.tenant, context_tokens=1_000, instructions="x" * 2_000)
    body: dict[str, Any] = {"agent_id": str(agent.pk), "items": [*items(2), {"message": 3}, {}]}
    assert set(api.refused("POST", BATCH, body)) == {"items.2.message", "items.3"}
    body["items"] = [{"message": "a"}, {"message": "x" * 4_000, "agent_id": str(small.pk)}]
    assert set(api.refused("POST", BATCH, body)) == {"items.1"}


def test_of_many_problems_the_first_hundred_are_told(api: Api, agent: Agent) -> None:
    details = api.refused("POST", BATCH, {"agent_id": str(agent.pk), "items": [{}] * 250})
    assert len(details) == lines.MOST_TOLD + 1
    assert details["more"] == "150 more problems"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": "all"}, "items"),
        ({"items": [{"message": "a"}]}, "items.0.agent_id"),
        ({"items": [{"message": "a"}], "agent_id": "me"}, "agent_id"),
        ({"items": [{"message": "a"}], "priority": "high"}, "priority"),
    ],
    ids=["nothing", "no-items", "no-list", "no-agent", "no-id", "unknown"],
)
def test_what_is_no_batch_is_refused(api: Api, body: dict[str, Any], named: str) -> None:
    assert named in api.refused("POST", BATCH, body)


def test_bounds(api: Api, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_ITEMS", 3)
    assert "items" in api.refused("POST", BATCH, {"agent_id": str(agent.pk), "items": items(4)})
    monkeypatch.setattr(batches, "MOST_OPEN", 1)
    begin(api, agent, 1)
    api("POST", BATCH, {"agent_id": str(agent.pk), "items": items(1)}, expect=409)
    assert post_lines(api, b"", f"?agent_id={agent.pk}")[0] == 422
    assert post_lines(api, b"{}", "?agent_id=me")[0] == 422
    status, refused = post_lines(api, b"a,b", kind="text/csv")
    assert (status, refused["error"]["type"]) == (415, "UnsupportedMediaType")


def test_a_batch_may_be_larger_than_other_bodies(api: Api, agent: Agent) -> None:
    text = "\n".join('{"message": "%s"}' % ("x" * 30_000) for _ in range(12))
    assert post_lines(api, text, f"?agent_id={agent.pk}")[0] == 202
    status, refused = post_lines(api, b" " * (32 * 1024 * 1024 + 1))
    assert (status, refused["error"]["type"]) == (413, "BodyTooLarge")


def test_an_unknown_agent_is_not_found(api: Api) -> None:
    for unknown in (uuid.uuid4(), make_agent(make_tenant()).pk, make_agent(api.tenant, draft=True).pk):
        body = {"agent_id": str(unknown), "items": items(1)}
        assert api("POST", BATCH, body, expect=404)["error"]["type"] == "AgentNotFound"


def test_the_same_request_is_one_batch(api: Api, agent: Agent) -> None:
    key = make_key(api.tenant)[1]
    headers = {"authorization": f"Bearer {key}", "idempotency-key": "import-of-november-20"}

    def post(kind: str, body: bytes) -> tuple[int, Any]:
        answer = Client().generic(
            "POST", f"{BATCH}?agent_id={agent.pk}", body, content_type=kind, headers=headers
        )
        return answer.status_code, answer.json()

    body = json.dumps({"agent_id": str(agent.pk), "items": items(2)}).encode()
    first = post("application/json", body)
    assert first[0] == 202
    assert post("application/json", body) == first
    assert post("application/json", body.replace(b"Question 2", b"Question 3"))[0] == 409
    assert Batch.unscoped.filter(tenant=api.tenant).count() == 1
    headers["idempotency-key"] += "-lines"
    first = post(TYPES[0], b'{"message": "a"}')
    assert post(TYPES[0], b'{"message": "a"}') == first
    assert post(TYPES[0], b'{"message": "b"}')[0] == 409
    assert Batch.unscoped.filter(tenant=api.tenant).count() == 2
    headers["idempotency-key"] += "-bad"
    assert post(TYPES[0], b'{"message": ""}')[0] == 422
    assert post(TYPES[0], b'{"message": "mended"}')[0] == 202
    assert IdempotencyKey.unscoped.filter(tenant=api.tenant).count() == 3


# --- Feeding ---------------------------------------------------------------------------------------


def test_only_a_few_have_a_task_at_a_time(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 40)
    feed(api.tenant)
    most = batches.MOST_AT_ONCE
    assert len(waiting(api.tenant, RUN)) == most
    run(waiting(api.tenant, RUN)[0])
    feed(api.tenant)
    assert len(waiting(api.tenant, RUN)) == most
    assert Task.unscoped.filter(tenant=api.tenant, action=RUN).count() == most + 1
    work(api.tenant)
    assert counts(api, batch) == ("completed", 40, 40, 0, 0)


@pytest.mark.parametrize(("cap", "places"), [(1, 1), (2, 1), (6, 3), (1_000, 16)])
def test_half_of_a_tenants_places_stay_free(api: Api, agent: Agent, cap: int, places: int) -> None:
    Tier.objects.filter(pk=api.tenant.tier_id).update(max_running=cap)
    begin(api, agent, 20)
    begin(api, agent, 20)
    feed(api.tenant)
    assert len(waiting(api.tenant, RUN)) == places


def test_a_tenants_batches_are_worked_through_in_their_order(api: Api, agent: Agent) -> None:
    Tier.objects.filter(pk=api.tenant.tier_id).update(max_running=4)
    first, second = sorted([begin(api, agent, 3), begin(api, agent, 2)], key=lambda batch: batch.pk)
    feed(api.tenant)
    order = []
    while tasks := waiting(api.tenant, RUN):
        item = BatchItem.unscoped.get(task=tasks[0])
        order.append((item.batch_id, item.position))
        run(tasks[0])
        feed(api.tenant)
    totals = {batch.pk: batch.total for batch in (first, second)}
    assert order == [(pk, n) for pk, total in totals.items() for n in range(1, total + 1)]


def test_batches_of_two_tenants_do_not_meet(api: Api, agent: Agent) -> None:
    other = Api(make_tenant())
    theirs = begin(other, make_agent(other.tenant), 30)
    ours = begin(api, agent, 2)
    work(api.tenant)
    assert counts(api, ours) == ("completed", 2, 2, 0, 0)
    assert counts(other, theirs) == ("processing", 30, 0, 0, 0)
    for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel")):
        for unknown in (theirs.pk, uuid.uuid4(), "me"):
            answer = api(method, f"{BATCH}/{unknown}{path}", expect=404)
            assert answer["error"]["type"] == "BatchNotFound"


def test_each_item_ends_once_whoever_looks(api: Api, agent: Agent) -> None:
    """Two who feed at once: each place is given once, each end is counted once."""
    batch = begin(api, agent, 30)
    feed(api.tenant)
    for task in waiting(api.tenant, RUN)[:8]:
        run(task)
    barrier = Barrier(4)

    def look() -> None:
        barrier.wait(10)
        try:
            with tenant_scope(api.tenant.pk):
                execute(BatchFeedAction())
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(look) for _ in range(4)]:
            done.result(30)
    assert counts(api, batch) == ("processing", 30, 8, 0, 0)
    assert len(waiting(api.tenant, RUN)) == batches.MOST_AT_ONCE


def test_a_callback_that_died_is_made_up_for(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 2)
    feed(api.tenant)
    for task in waiting(api.tenant, RUN):
        run(task)
    Task.unscoped.filter(tenant=api.tenant, action=FEED).update(status="failed")
    assert counts(api, batch) == ("processing", 2, 0, 0, 0)
    rounds.turn()
    rounds.turn()
    assert len(waiting(api.tenant, FEED)) == 1
    feed(api.tenant)
    assert counts(api, batch) == ("completed", 2, 2, 0, 0)
    rounds.turn()
    assert waiting(api.tenant, FEED) == []


def test_beat_sends_the_rounds() -> None:
    sent = {entry["task"] for entry in app.conf.beat_schedule.values()}
    assert rounds.ROUND in sent
    assert sent <= set(app.tasks)


def test_a_worker_that_dies_costs_nothing(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 2)
    feed(api.tenant)
    first, second = waiting(api.tenant, RUN)
    claim(first)
    run(second)
    lose_worker(first)
    sweeper.end_abandoned()
    work(api.tenant)
    assert counts(api, batch) == ("completed", 2, 2, 0, 0)
    assert Task.unscoped.get(pk=first.pk).attempt == 2


def test_an_item_whose_task_is_gone_has_failed(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 2)
    feed(api.tenant)
    gone, _ = waiting(api.tenant, RUN)
    gone.delete()
    rounds.turn()
    work(api.tenant)
    assert counts(api, batch) == ("completed", 2, 1, 1, 0)
    assert results_of(api, batch)[0]["error"]["type"] == "TaskNotFound"


def test_a_retry_of_a_run_is_no_part_of_the_batch(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 1)
    work(api.tenant)
    before = results_of(api, batch)
    with tenant_scope(api.tenant.pk):
        execute(TaskRetryAction(task_id=uuid.UUID(before[0]["task_id"])))
    work(api.tenant)
    assert results_of(api, batch) == before
    assert counts(api, batch) == ("completed", 1, 1, 0, 0)


def test_items_of_an_agent_that_is_gone_fail(api: Api, agent: Agent) -> None:
    gone = make_agent(api.tenant)
    begun = [{"message": "a", "agent_id": str(one.pk)} for one in [gone] * 40 + [agent]]
    made = api("POST", BATCH, {"items": begun}, expect=202)
    batch = Batch.unscoped.get(pk=made["batch_id"])
    api("DELETE", f"/api/v1/agents/{gone.pk}", expect=204)
    _live.clear()  # a second later
    work(api.tenant)
    assert counts(api, batch) == ("completed", 41, 1, 40, 0)
    failed = results_of(api, batch)[0]
    assert (failed["error"]["type"], failed["task_id"]) == ("AgentNotFound", None)


def test_the_rest_of_a_suspended_tenants_batch_fails(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 20)
    execute(TenantSuspendAction(tenant_id=api.tenant.pk))
    work(api.tenant)
    assert counts(api, batch) == ("completed", 20, 0, 20, 0)
    assert {one["error"]["type"] for one in results_of(api, batch)} == {"Suspended"}


def test_an_item_that_cannot_begin_holds_nobody_up(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 3)
    BatchItem.unscoped.filter(batch=batch, position=1).update(request={"messages": 1, "metadata": {}})
    work(api.tenant)
    assert counts(api, batch) == ("completed", 3, 2, 1, 0)
    assert results_of(api, batch)[0]["error"]["type"] == "InternalError"


# --- Cancel ----------------------------------------------------------------------------------------


def test_a_cancelled_batch_stops(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 40)
    feed(api.tenant)
    done, running, *_rest = waiting(api.tenant, RUN)
    run(done)
    claim(running)
    shown = api("POST", f"{BATCH}/{batch.pk}/cancel")
    assert (shown["status"], shown["succeeded"], shown["cancelled"]) == ("cancelling", 1, 38)
    assert waiting(api.tenant, RUN) == []
    running.refresh_from_db()
    assert (running.status, running.cancelled_by[:4]) == ("cancelling", "key:")
    # Again: the same.
    assert api("POST", f"{BATCH}/{batch.pk}/cancel")["status"] == "cancelling"
    lose_worker(running)
    sweeper.end_abandoned()
    work(api.tenant)
    assert counts(api, batch) == ("cancelled", 40, 1, 0, 39)
    assert len(results_of(api, batch)) == 40
    assert Task.unscoped.filter(tenant=api.tenant, action=RUN).count() == batches.MOST_AT_ONCE
    told = Notice.unscoped.get(subject=str(batch.pk))
    assert (told.event, told.body["data"]["status"]) == ("batch_completed", "cancelled")
    refused = api("POST", f"{BATCH}/{batch.pk}/cancel", expect=409)
    assert refused["error"]["type"] == "CannotCancel"
    entries = AuditEntry.unscoped.filter(object_id=str(batch.pk)).order_by("pk")
    assert [entry.verb for entry in entries] == ["batch.create", "batch.cancel"]


def test_a_batch_that_nobody_has_begun_is_cancelled_at_once(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 5)
    assert api("POST", f"{BATCH}/{batch.pk}/cancel")["status"] == "cancelled"
    work(api.tenant)
    assert counts(api, batch) == ("cancelled", 5, 0, 0, 5)
    assert not Task.unscoped.filter(tenant=api.tenant, action=RUN).exists()


def test_the_next_batch_has_the_places_of_a_cancelled_one(api: Api, agent: Agent) -> None:
    first, second = sorted([begin(api, agent, 40), begin(api, agent, 2)], key=lambda batch: batch.pk)
    feed(api.tenant)
    api("POST", f"{BATCH}/{first.pk}/cancel")
    work(api.tenant)
    assert counts(api, first)[0] == "cancelled"
    assert counts(api, second)[0] == "completed"


def test_the_cancel_of_one_run_is_that_items_end(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 3)
    feed(api.tenant)
    with tenant_scope(api.tenant.pk):
        execute(TaskCancelAction(task_id=waiting(api.tenant, RUN)[1].pk))
    work(api.tenant)
    assert counts(api, batch) == ("completed", 3, 2, 0, 1)
    assert [one["status"] for one in results_of(api, batch)] == ["completed", "cancelled", "completed"]


def test_who_cancels_and_who_feeds_at_once(api: Api, agent: Agent) -> None:
    batch = begin(api, agent, 200)
    feed(api.tenant)
    for task in waiting(api.tenant, RUN)[:4]:
        run(task)
    barrier = Barrier(4)

    def at_once(work: Callable[[], Any]) -> None:
        barrier.wait(10)
        try:
            with tenant_scope(api.tenant.pk):
                work()
        finally:
            connection.close()

    words: list[Callable[[], Any]] = [lambda: execute(BatchFeedAction())] * 3
    words.append(lambda: execute(BatchCancelAction(batch_id=batch.pk)))
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(at_once, word) for word in words]:
            done.result(30)
    work(api.tenant)
    assert counts(api, batch) == ("cancelled", 200, 4, 0, 196)


# --- Rights and retention --------------------------------------------------------------------------


def test_rights(committed_tenant: Tenant) -> None:
    writer, reader = (Api(committed_tenant, (f"chat:{right}",)) for right in ("write", "read"))
    agent = make_agent(committed_tenant)
    body = {"agent_id": str(agent.pk), "items": items(1)}
    reader("POST", BATCH, body, expect=403)
    made = writer("POST", BATCH, body, expect=202)
    address = f"{BATCH}/{made['batch_id']}"
    for path in (BATCH, address, f"{address}/results"):
        writer("GET", path, expect=403)
        reader("GET", path)
    reader("POST", f"{address}/cancel", expect=403)
    writer("POST", f"{address}/cancel")
    assert Client().get(BATCH).status_code == 401


def test_old_batches_are_deleted_with_their_runs(
    api: Api, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "SLICE", 2)
    old, young = begin(api, agent, 5, user_id="ada"), begin(api, agent, 1)
    work(api.tenant)
    running = begin(api, agent, 1)
    tasks = [one["task_id"] for one in results_of(api, old)]
    Batch.unscoped.filter(pk=old.pk).update(finished_at=Now() - datetime.timedelta(days=31))
    rounds.turn()
    assert Batch.unscoped.filter(pk=old.pk).exists()  # kept for ever
    Tenant.objects.filter(pk=api.tenant.pk).update(retention_days=30)
    rounds.turn()
    left = Batch.unscoped.filter(tenant=api.tenant)
    assert set(left.values_list("pk", flat=True)) == {young.pk, running.pk}
    assert not Task.unscoped.filter(pk__in=tasks).exists()
    cost = UsageRecord.unscoped.filter(tenant=api.tenant)
    assert (cost.count(), cost.filter(end_user="ada").count()) == (6, 0)
    entry = AuditEntry.unscoped.get(verb="batch.purge", object_id=str(old.pk))
    assert entry.tenant_id == api.tenant.pk
