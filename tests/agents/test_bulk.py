"""Mass updates: one change for many agents, whatever happens to the worker that makes it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from django.db import connection

from agents.bulk_actions import MOST_NAMED, AgentBulkUpdateAction
from agents.handlers import bulk
from agents.models import Agent, AgentBulkItem, AgentVersion
from core.actions import running
from core.actions.bus import execute
from core.actions.sweeper import end_abandoned
from core.actions.tasks import TaskRetryAction
from core.actions.worker import run_task
from core.api.parsers import MAX_BODY
from core.models import AuditEntry, Notice, Task, Tenant, Tier
from core.tenancy import tenant_scope
from tests.api import Api
from tests.core.broker.server import eventually
from tests.factories import lose_worker, make_agent, make_task, make_tenant, random_slug
from tests.workers import Worker

BULK = "/api/v1/agents/bulk"
MORE_TURNS = {"config": {"max_turns": 3}}


@pytest.fixture
def api(tenant: Tenant) -> Api:
    return Api(tenant)


def ask(api: Api, agents: list[Any] | None = None, **fields: Any) -> Task:
    """A mass update that waits for its worker; of all agents when none is named."""
    named = {"all": True} if agents is None else {"agents": [str(name) for name in agents]}
    answer = api("POST", BULK, {"changes": MORE_TURNS, **named, **fields}, expect=202)
    assert answer["success"], answer
    task: Task = Task.unscoped.get(pk=answer["result"]["task_id"])
    assert answer["result"]["queue"] == task.queue
    return task


def work(task: Task) -> None:
    run_task(str(task.pk), task.tenant_id)


def state(api: Api, task: Task, query: str = "") -> dict[str, Any]:
    found: dict[str, Any] = api("GET", f"{BULK}/{task.pk}{query}")
    return found


def numbers(agents: list[Agent]) -> list[int]:
    """How many versions each agent has."""
    return [AgentVersion.unscoped.filter(agent=agent).count() for agent in agents]


def agents_of(tenant: Tenant, count: int) -> list[Agent]:
    return [make_agent(tenant) for _ in range(count)]


# --- What it does ---------------------------------------------------------------------------------


def test_every_agent_is_changed_as_if_somebody_had_changed_it_alone(api: Api, tenant: Tenant) -> None:
    agents = agents_of(tenant, 3)
    task = ask(api, [agents[0].pk, agents[1].slug], note="Shorter")
    assert task.queue == f"orchestrator:{tenant.pk}:agent_bulk_update:low"
    before = state(api, task)
    assert (before["total"], before["done"], before["results"]) == (2, 0, [])
    work(task)
    after = state(api, task)
    assert {name: after[name] for name in ("status", "total", "done", "succeeded", "failed", "next")} == {
        "status": "completed",
        "total": 2,
        "done": 2,
        "succeeded": 2,
        "failed": 0,
        "next": None,
    }
    assert after["results"] == [
        {"agent_id": str(agent.pk), "slug": agent.slug, "ok": True, "version": 2, "error": None}
        for agent in agents[:2]
    ]
    assert numbers(agents) == [2, 2, 1]
    version = AgentVersion.unscoped.get(agent=agents[0], number=2)
    assert (version.config["max_turns"], version.note, version.author[:4]) == (3, "Shorter", "key:")
    entry = AuditEntry.unscoped.get(object_id=str(agents[0].pk), verb="agent.update")
    assert (entry.actor, entry.source, entry.request_id) == (version.author, "queue", str(task.pk))
    told = Notice.unscoped.filter(subject=str(agents[0].pk))
    assert [notice.event for notice in told] == ["agent_updated"]


def test_all_are_those_that_are_there_when_it_is_asked_for(api: Api, tenant: Tenant) -> None:
    agents = agents_of(tenant, 2)
    gone = make_agent(tenant)
    api("DELETE", f"/api/v1/agents/{gone.pk}", expect=204)
    foreign = make_agent(make_tenant())
    task = ask(api, changes={"type": "clerk", "description": "Files.", "draft": True})
    late = make_agent(tenant)
    work(task)
    assert [result["slug"] for result in state(api, task)["results"]] == [agent.slug for agent in agents]
    rows = Agent.unscoped.filter(pk__in=[agent.pk for agent in agents])
    assert {(row.type, row.description, row.status) for row in rows} == {("clerk", "Files.", "draft")}
    for other in (late, foreign):
        assert Agent.unscoped.get(pk=other.pk).type == "assistant"


def test_a_null_takes_a_value_away(api: Api, tenant: Tenant) -> None:
    agent = make_agent(tenant, temperature=0.5)
    work(ask(api, [agent.pk], changes={"config": {"temperature": None}}))
    assert "temperature" not in AgentVersion.unscoped.get(agent=agent, number=2).config


def test_one_that_is_refused_does_not_stop_the_others(api: Api, tenant: Tenant) -> None:
    first, second, last = agents_of(tenant, 3)
    foreign = make_agent(make_tenant(), slug=random_slug())
    nobody, never = uuid.uuid4(), random_slug()
    deleted = make_agent(tenant)
    task = ask(
        api, [first.pk, foreign.pk, foreign.slug, nobody, never, "No slug!", second.slug, deleted.pk, last.pk]
    )
    api("DELETE", f"/api/v1/agents/{deleted.pk}", expect=204)
    # As if a row had been spoilt by hand.
    AgentVersion.unscoped.filter(agent=second).update(config={"provider": "scripted"})
    work(task)
    found = state(api, task)
    assert (found["status"], found["done"], found["succeeded"], found["failed"]) == ("completed", 9, 2, 7)
    errors = [result["error"] and result["error"]["type"] for result in found["results"]]
    missing = ["AgentNotFound"] * 5
    assert errors[:6] == [None, *missing]
    assert errors[6] in ("ValidationFailed", "InternalError")
    assert errors[7:] == ["AgentNotFound", None]
    asked = [result["agent_id"] or result["slug"] for result in found["results"]]
    assert asked[1:6] == [str(foreign.pk), foreign.slug, str(nobody), never, "No slug!"]
    assert numbers([first, second, last, foreign, deleted]) == [2, 1, 2, 1, 1]


def test_what_the_tier_forbids_is_each_agents_failure(api: Api, tenant: Tenant) -> None:
    agents = agents_of(tenant, 2)
    Tier.objects.filter(pk=tenant.tier_id).update(allowed_models=["echo"])
    task = ask(api, changes={"config": {"model": "long"}})
    work(task)
    for result in state(api, task)["results"]:
        assert (result["ok"], result["version"], result["slug"] != "") == (False, None, True)
        assert result["error"]["details"] == {"config.model": "The tier Tier does not allow this model."}
    assert numbers(agents) == [1, 1]


def test_an_agent_that_is_named_twice_changes_once(api: Api, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    task = ask(api, [agent.pk, agent.slug, agent.pk])
    work(task)
    assert [result["version"] for result in state(api, task)["results"]] == [2, 2]
    assert numbers([agent]) == [2]


def test_results_come_in_pages(api: Api, tenant: Tenant) -> None:
    task = ask(api, [agent.pk for agent in agents_of(tenant, 5)])
    work(task)
    page = state(api, task, "?limit=3")
    rest = state(api, task, f"?limit=3&cursor={page['next']}")
    assert (len(page["results"]), len(rest["results"]), rest["next"]) == (3, 2, None)
    assert len({result["agent_id"] for result in page["results"] + rest["results"]}) == 5


# --- What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "changes"),
        ({"changes": MORE_TURNS}, "body"),
        ({"changes": MORE_TURNS, "all": False}, "all"),
        ({"changes": MORE_TURNS, "all": True, "agents": ["a"]}, "body"),
        ({"changes": MORE_TURNS, "agents": []}, "agents"),
        ({"changes": MORE_TURNS, "agents": [7]}, "agents.0"),
        ({"changes": MORE_TURNS, "agents": ["x" * 41]}, "agents.0"),
        ({"changes": MORE_TURNS, "agents": [str(n) for n in range(MOST_NAMED + 1)]}, "agents"),
        ({"changes": {}, "all": True}, "changes"),
        ({"changes": {"config": {}}, "all": True}, "changes"),
        ({"changes": {"publish": False}, "all": True}, "changes"),
        ({"changes": {"name": "Same"}, "all": True}, "changes.name"),
        ({"changes": {"slug": "same"}, "all": True}, "changes.slug"),
        ({"changes": {"config": {"max_turns": 0}}, "all": True}, "changes.config.max_turns"),
        ({"changes": {"config": {"models": "x"}}, "all": True}, "changes.config.models"),
        ({"changes": {"config": {"provider": None}}, "all": True}, "changes.config.provider"),
        ({"changes": MORE_TURNS, "all": True, "note": "x" * 501}, "note"),
        ({"changes": MORE_TURNS, "all": True, "priority": 9}, "priority"),
    ],
)
def test_what_is_no_mass_update_is_refused_before_anything_is_queued(
    api: Api, tenant: Tenant, body: dict[str, Any], field: str
) -> None:
    make_agent(tenant)
    assert field in api.refused("POST", BULK, body)
    assert not Task.unscoped.filter(tenant=tenant, action=AgentBulkUpdateAction.verb).exists()
    assert not AgentBulkItem.unscoped.filter(tenant=tenant).exists()


def test_a_body_may_be_as_large_as_many_agents_need(api: Api) -> None:
    names = [str(uuid.uuid4()) for _ in range(MOST_NAMED)]
    assert sum(map(len, names)) > MAX_BODY
    assert state(api, ask(api, names))["total"] == MOST_NAMED


def test_it_needs_the_right_to_write_agents(tenant: Tenant) -> None:
    task = ask(Api(tenant), [make_agent(tenant).pk])
    reader = Api(tenant, ("agents:read",))
    reader("POST", BULK, {"changes": MORE_TURNS, "all": True}, expect=403)
    reader("POST", f"{BULK}/{task.pk}/cancel", expect=403)
    assert state(reader, task)["total"] == 1


def test_what_is_no_mass_update_of_the_tenant_is_not_found(api: Api, tenant: Tenant) -> None:
    other = make_tenant()
    make_agent(other)
    ids = [ask(Api(other)).pk, make_task(tenant).pk, uuid.uuid4(), "x"]
    for task_id in ids:
        for method, path in (("GET", ""), ("POST", "/cancel")):
            answer = api(method, f"{BULK}/{task_id}{path}", expect=404)
            assert answer["error"]["type"] == "TaskNotFound"
    assert Task.unscoped.get(pk=ids[0]).status == "pending"


# --- Cancelled, repeated, one after the other -------------------------------------------------------


def when(monkeypatch: pytest.MonkeyPatch, count: int, happens: Callable[[], object]) -> None:
    """Before the worker turns to the agent after `count` ones, something happens."""
    turned: list[int] = []
    change = bulk._change

    def change_and_count(item_id: int, action: AgentBulkUpdateAction, task: Task) -> None:
        if len(turned) == count:
            happens()
        turned.append(item_id)
        change(item_id, action, task)

    monkeypatch.setattr(bulk, "_change", change_and_count)


def test_cancelled_before_it_begins_it_changes_nothing(api: Api, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    task = ask(api)
    answer = api("POST", f"{BULK}/{task.pk}/cancel")
    assert answer["result"] == {"task_id": str(task.pk), "status": "cancelled"}
    work(task)
    assert (state(api, task)["status"], numbers([agent])) == ("cancelled", [1])
    assert api("POST", f"{BULK}/{task.pk}/cancel", expect=409)["error"]["type"] == "CannotCancel"


def test_cancelled_in_the_middle_it_stops_at_the_next_agent(
    api: Api, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = agents_of(tenant, 4)
    task = ask(api)
    when(monkeypatch, 1, lambda: api("POST", f"{BULK}/{task.pk}/cancel"))
    work(task)
    found = state(api, task)
    assert (found["status"], found["done"], len(found["results"])) == ("cancelled", 2, 2)
    assert numbers(agents) == [2, 2, 1, 1]
    assert Task.unscoped.get(pk=task.pk).result == {"total": 4, "done": 2, "succeeded": 2, "failed": 0}


class Killed(BaseException):
    """The process ends here."""


def test_after_a_crash_it_goes_on_where_it_was(
    api: Api, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = agents_of(tenant, 3)

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patched:
        when(patched, 2, kill)
        task = ask(api)
        with pytest.raises(Killed):
            work(task)
    assert state(api, task)["done"] == 2
    # Meanwhile somebody takes one of them back: that is not changed a second time.
    api("PATCH", f"/api/v1/agents/{agents[0].pk}", {"config": {"max_turns": 10}})
    lose_worker(task)
    end_abandoned()
    work(task)
    found = state(api, task)
    assert (found["status"], found["succeeded"]) == ("completed", 3)
    assert Task.unscoped.get(pk=task.pk).attempt == 2
    assert numbers(agents) == [3, 2, 2]
    assert AgentVersion.unscoped.get(agent=agents[0], number=3).config["max_turns"] == 10


def test_the_change_and_that_it_is_done_are_one_thing(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, neither has happened."""
    agent = make_agent(committed_tenant)
    api = Api(committed_tenant)
    task = ask(api)

    def kill(item: AgentBulkItem, *args: Any, **kwargs: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(AgentBulkItem, "save", kill)
        work(task)
    assert (numbers([agent]), state(api, task)["done"]) == ([1], 0)


@pytest.mark.parametrize("reason", ["drain", "slice"])
def test_a_worker_that_has_no_more_time_hands_it_over(
    api: Api, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    agents = agents_of(tenant, 3)
    task = ask(api)
    with monkeypatch.context() as patched:
        if reason == "drain":
            when(patched, 1, running.draining.set)
        else:
            when(patched, 1, lambda: patched.setattr(bulk, "SLICE_SECONDS", -1.0))
        try:
            settlement = _attempt(task)
        finally:
            running.draining.clear()
    assert (settlement.status, state(api, task)["done"]) == ("queued", 2)
    Task.unscoped.get(pk=task.pk).give_back()
    work(task)
    assert (state(api, task)["status"], numbers(agents)) == ("completed", [2, 2, 2])


def _attempt(task: Task) -> Any:
    claimed = Task.claim(task.pk, task.tenant_id, 60)
    assert claimed is not None
    with tenant_scope(task.tenant_id):
        return bulk.bulk_update(AgentBulkUpdateAction(**claimed.payload), claimed)


def test_a_retry_does_what_failed_and_what_was_left(api: Api, tenant: Tenant) -> None:
    agents = agents_of(tenant, 2)
    Tier.objects.filter(pk=tenant.tier_id).update(allowed_models=["echo"])
    task = ask(api, [agents[0].pk, agents[1].pk, random_slug()], changes={"config": {"model": "long"}})
    work(task)
    Tier.objects.filter(pk=tenant.tier_id).update(allowed_models=["echo", "long"])
    with tenant_scope(tenant.pk):
        again = Task.unscoped.get(pk=execute(TaskRetryAction(task_id=task.pk)).task_id)
    work(again)
    found = state(api, again)
    assert (found["status"], found["done"], found["succeeded"], found["failed"]) == ("completed", 3, 2, 1)
    assert [result["error"] is None for result in found["results"]] == [True, True, False]
    assert numbers(agents) == [2, 2]


def test_a_tenants_mass_updates_run_one_after_the_other(api: Api, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    first = ask(api, changes={"config": {"max_turns": 3}})
    second = ask(api, changes={"config": {"max_turns": 4}})
    work(second)
    assert (state(api, second)["status"], numbers([agent])) == ("pending", [1])
    work(first)
    work(second)
    assert AgentVersion.unscoped.get(agent=agent, number=3).config["max_turns"] == 4


def test_two_workers_at_once_change_each_agent_once(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is late: its lease has run out, and it does not know yet."""
    agents = agents_of(committed_tenant, 6)
    task = ask(Api(committed_tenant))
    claimed = Task.claim(task.pk, task.tenant_id, 60)
    assert claimed is not None
    items = list(AgentBulkItem.unscoped.filter(task=task).order_by("position").values_list("pk", flat=True))
    action = AgentBulkUpdateAction(**claimed.payload)
    barrier = Barrier(2)
    asked: list[uuid.UUID] = []

    def execute_and_count(action: Any) -> Any:
        asked.append(action.agent_id)
        return execute(action)

    monkeypatch.setattr(bulk, "execute", execute_and_count)

    def change(_worker: int) -> None:
        try:
            for item in items:
                barrier.wait(timeout=30)
                with tenant_scope(task.tenant_id):
                    bulk._change(item, action, claimed)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(change, range(2)))
    assert numbers(agents) == [2] * 6
    assert sorted(asked) == sorted(agent.pk for agent in agents)


# --- With the platform's own workers ------------------------------------------------------------------


@pytest.fixture
def start(committed_tenant: Tenant, tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Begin a worker of every domain but that of runs, and wait until it consumes."""
    workers: list[Worker] = []

    def begin() -> Worker:
        log = tmp_path / f"w{len(workers)}.log"
        workers.append(Worker(log, domains="orchestrator,workflow,tool,conversation,ingestion"))
        workers[-1].ready()
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()


def test_a_killed_workers_mass_update_is_finished_by_another(
    committed_tenant: Tenant, start: Callable[[], Worker]
) -> None:
    api = Api(committed_tenant)
    agents = agents_of(committed_tenant, 120)
    worker = start()
    task = ask(api)
    eventually(lambda: state(api, task)["done"] >= 5)
    worker.kill()
    done = state(api, task)["done"]
    assert done < len(agents)
    lose_worker(task)
    start()
    eventually(lambda: state(api, task)["status"] == "completed", 60)
    found = state(api, task)
    assert (found["succeeded"], found["failed"]) == (120, 0)
    assert set(numbers(agents)) == {2}
    assert Task.unscoped.get(pk=task.pk).attempt == 2
