"""The kill switch: of an agent, and of a tenant."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from agents import selectors as agents
from agents.actions import AgentStopRunsAction, AgentSuspendAction, AgentUnsuspendAction
from agents.models import Agent
from core import aio, suspension
from core.actions.bus import execute
from core.actions.suspension import TenantStopRunsAction, TenantSuspendAction, TenantUnsuspendAction
from core.actions.worker import run_task
from core.errors import TenantNotFound
from core.models import AuditEntry, Task, Tenant
from core.tenancy import across_tenants, tenant_scope
from orchestrator.sockets import keeper as keepers
from tests.api import Api
from tests.conftest import forget_cached_rows
from tests.factories import claim, make_agent, make_tenant
from tests.orchestrator.test_admission import accepted, in_thread, opened, post, refusal, refused, turned_down

Switch = Callable[[bool], None]


@pytest.fixture(autouse=True)
def everybody_knows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspension, "EVERYBODY_KNOWS", 0.0)


@pytest.fixture
def agent(committed_tenant: Tenant) -> Agent:
    return make_agent(committed_tenant)


@pytest.fixture(params=["agent", "tenant"])
def switch(request: Any, agent: Agent) -> Switch:
    """Switches the agent, or its tenant, off (True) and on again."""

    def of_agent(off: bool) -> None:
        fields = {"agent_id": agent.pk, "actor": "test"}
        with tenant_scope(agent.tenant_id):
            execute(AgentSuspendAction(reason="abuse", **fields) if off else AgentUnsuspendAction(**fields))

    def of_tenant(off: bool) -> None:
        tenant_id = agent.tenant_id
        action = TenantSuspendAction(tenant_id=tenant_id, reason="abuse") if off else None
        execute(action or TenantUnsuspendAction(tenant_id=tenant_id))

    def switch(off: bool) -> None:
        (of_agent if request.param == "agent" else of_tenant)(off)
        # What every process does by itself within a second.
        forget_cached_rows()

    return switch


def stop_runs(tenant: Tenant) -> None:
    """What the worker does that gets the task of the switch."""
    verbs = (TenantStopRunsAction.verb, AgentStopRunsAction.verb)
    with across_tenants():
        tasks = list(Task.unscoped.filter(tenant=tenant, action__in=verbs).exclude(status="completed"))
    for task in tasks:
        run_task(str(task.pk), task.tenant_id)


def statuses(*task_ids: str) -> list[str]:
    with across_tenants():
        found = dict(Task.unscoped.filter(pk__in=task_ids).values_list("pk", "status"))
    return [next(status for pk, status in found.items() if str(pk) == task_id) for task_id in task_ids]


def test_new_messages_are_refused_until_it_is_lifted(agent: Agent, switch: Switch) -> None:
    accepted(post(agent))
    switch(True)
    for path in ("/api/v1/chat/message", "/api/chat/send"):
        assert refused(post(agent, path)) == ("Suspended", {})
    # To somebody else's tenant it does not exist, switched off or not.
    assert refused(post(agent, tenant_id=make_tenant().pk), 404)[0] == "AgentNotFound"
    assert Client().get(f"/chat/{agent.pk}").status_code == 403
    switch(False)
    accepted(post(agent))
    assert Client().get(f"/chat/{agent.pk}").status_code == 200


def test_what_waits_and_what_runs_is_cancelled(
    agent: Agent, committed_tenant: Tenant, switch: Switch
) -> None:
    running, waiting = (accepted(post(agent))["task_id"] for _ in range(2))
    with across_tenants():
        claim(Task.unscoped.get(pk=running))
    bystander = accepted(post(make_agent(make_tenant())))["task_id"]
    switch(True)
    stop_runs(committed_tenant)
    assert statuses(running, waiting) == ["cancelling", "cancelled"]
    assert statuses(bystander)[0] in ("pending", "queued")
    with across_tenants():
        assert Task.unscoped.get(pk=waiting).cancelled_by == suspension.BY


def test_another_agents_runs_go_on(committed_tenant: Tenant, agent: Agent) -> None:
    other = accepted(post(make_agent(committed_tenant)))["task_id"]
    with tenant_scope(committed_tenant.pk):
        execute(AgentSuspendAction(agent_id=agent.pk, actor="test"))
    stop_runs(committed_tenant)
    assert statuses(other)[0] in ("pending", "queued")


def test_what_slips_in_before_everybody_knows_is_cancelled_too(
    agent: Agent, committed_tenant: Tenant, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process still has yesterday's row while the first look is over."""
    live = agents.agent_live(agent.pk)
    slipped: list[str] = []

    def sleep(seconds: float) -> None:
        if seconds:
            agents._live.clear()
            agents._live.get(agent.pk, lambda _: live)
            slipped.append(str(accepted(post(agent))["task_id"]))

    switch(True)
    monkeypatch.setattr(suspension, "EVERYBODY_KNOWS", 1.0)
    monkeypatch.setattr(suspension.time, "sleep", sleep)
    stop_runs(committed_tenant)
    assert statuses(*slipped) == ["cancelled"]


def test_a_run_that_nobody_cancelled_does_not_begin(agent: Agent, switch: Switch) -> None:
    task_id = accepted(post(agent))["task_id"]
    switch(True)
    run_task(task_id, agent.tenant_id)
    with across_tenants():
        task = Task.unscoped.get(pk=task_id)
    assert (task.status, task.error["type"]) == ("failed", "Suspended")


def test_lifted_meanwhile_nothing_more_is_cancelled(
    agent: Agent, committed_tenant: Tenant, switch: Switch
) -> None:
    switch(True)
    switch(False)
    task_id = accepted(post(agent))["task_id"]
    stop_runs(committed_tenant)
    assert statuses(task_id)[0] in ("pending", "queued")


@pytest.mark.parametrize("hint", ["told", "lost"])
def test_sockets_are_told_and_closed(
    agent: Agent, committed_tenant: Tenant, switch: Switch, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = accepted(post(agent))["session_id"]
    other = accepted(post(make_agent(make_tenant())))
    if hint == "lost":
        monkeypatch.setattr("agents.handlers.rows.tell_access", lambda *args: None)
        monkeypatch.setattr("core.handlers.tell_access", lambda *args: None)
        monkeypatch.setattr(keepers, "RIGHTS_SECONDS", 0.0)

    async def scenario() -> None:
        async with opened(committed_tenant, session_id) as wire:
            await in_thread(switch, True)
            assert await refusal(wire) == ("Suspended", 4403)
        assert await turned_down(committed_tenant, session_id) == ("Suspended", 4403)
        await in_thread(switch, False)
        async with opened(committed_tenant, session_id):
            pass

    assert other["session_id"] != session_id
    aio.run(scenario())


def test_messages_over_an_open_socket_are_refused(
    agent: Agent, committed_tenant: Tenant, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a socket that has not heard of it."""
    monkeypatch.setattr("agents.handlers.rows.tell_access", lambda *args: None)
    monkeypatch.setattr("core.handlers.tell_access", lambda *args: None)
    monkeypatch.setattr(keepers, "RIGHTS_SECONDS", 1_000.0)

    async def scenario() -> None:
        async with opened(committed_tenant, "s-waits") as wire:
            await in_thread(switch, True)
            await wire.send_json_to(
                {"action": "chat.send_message", "agent_id": str(agent.pk), "message": "Hello"}
            )
            heard = await wire.receive_json_from(10)
            assert heard["data"]["error"]["type"] == "Suspended"

    aio.run(scenario())


# --- The verbs ---------------------------------------------------------------------------------------


def test_an_agents_switch_over_http(agent: Agent, committed_tenant: Tenant) -> None:
    api = Api(committed_tenant)
    path = f"/api/v1/agents/{agent.pk}"
    assert api("GET", path)["suspended_at"] is None
    off = api("POST", f"{path}/suspend", {"reason": "it swears"})
    assert off["suspended_at"] is not None
    again = api("POST", f"{path}/suspend", {"reason": "another one"})
    assert again["suspended_at"] == off["suspended_at"]
    assert api("POST", f"{path}/unsuspend")["suspended_at"] is None
    api("POST", f"{path}/unsuspend")
    with tenant_scope(committed_tenant.pk):
        told = list(AuditEntry.objects.filter(verb__in=["agent.suspend", "agent.unsuspend"]).order_by("pk"))
    assert [entry.verb for entry in told] == ["agent.suspend", "agent.unsuspend"]
    assert told[0].after["suspended_reason"] == "it swears"


@pytest.mark.parametrize("verb", ["suspend", "unsuspend"])
def test_who_may_not(agent: Agent, committed_tenant: Tenant, verb: str) -> None:
    path = f"/api/v1/agents/{agent.pk}/{verb}"
    Api(committed_tenant, ("agents:read", "chat:write"))("POST", path, {}, expect=403)
    foreign = Api(make_tenant())("POST", path, {}, expect=404)
    absent = Api(committed_tenant)("POST", f"/api/v1/agents/{committed_tenant.pk}/{verb}", {}, expect=404)
    assert foreign["error"] == absent["error"]
    Api(committed_tenant)("POST", path, {"surprise": 1}, expect=422)


def test_a_tenants_switch(committed_tenant: Tenant) -> None:
    execute(TenantSuspendAction(tenant_id=committed_tenant.pk, reason="unpaid"))
    execute(TenantSuspendAction(tenant_id=committed_tenant.pk, reason="a later one"))
    with across_tenants():
        committed_tenant.refresh_from_db()
        assert committed_tenant.suspended_reason == "unpaid"
        [entry] = AuditEntry.unscoped.filter(tenant=committed_tenant, verb="tenant.suspend")
        assert entry.after == {"suspended": True, "reason": "unpaid"}
        assert Task.unscoped.filter(tenant=committed_tenant, action="tenant.stop_runs").count() == 1
    execute(TenantUnsuspendAction(tenant_id=committed_tenant.pk))
    with pytest.raises(TenantNotFound):
        execute(TenantSuspendAction(tenant_id="nobody"))
    with pytest.raises(TenantNotFound):
        execute(TenantUnsuspendAction(tenant_id="nobody"))


def test_two_switches_at_once_are_one(committed_tenant: Tenant, agent: Agent) -> None:
    gate = threading.Barrier(4)

    def suspend() -> None:
        gate.wait(10)
        try:
            execute(TenantSuspendAction(tenant_id=committed_tenant.pk, reason="abuse"))
        finally:
            connection.close()

    threads = [threading.Thread(target=suspend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    with across_tenants():
        assert AuditEntry.unscoped.filter(tenant=committed_tenant, verb="tenant.suspend").count() == 1
        assert Task.unscoped.filter(tenant=committed_tenant, action="tenant.stop_runs").count() == 1


def test_an_export_says_who_may_chat_and_not_that_it_is_off(agent: Agent, committed_tenant: Tenant) -> None:
    api = Api(committed_tenant)
    path = f"/api/v1/agents/{agent.pk}"
    config = {
        "access": "signed",
        "allowed_origins": ["HTTPS://Shop.example:443"],
        "require_resume_token": True,
    }
    changed = api("PATCH", path, {"config": config})["config"]
    assert changed["allowed_origins"] == ["https://shop.example"]
    api("POST", f"{path}/suspend", {"reason": "a while"})
    document = api("GET", f"{path}/export")
    assert {name: document["config"][name] for name in config} == {name: changed[name] for name in config}
    assert "suspended" not in json.dumps(document)
    made = api("POST", "/api/v1/agents/import", document, expect=201)
    assert (made["config"], made["suspended_at"]) == (changed, None)
    diff = api("GET", f"{path}/diff?from=1&to=2")
    fields = {change["field"] for change in diff["diff"]}
    assert fields == {f"config.{name}" for name in config}


@pytest.mark.parametrize(
    "config",
    [
        {"access": "secret"},
        {"allowed_origins": ["*"]},
        {"allowed_origins": ["null"]},
        {"allowed_origins": ["https://shop.example/path"]},
        {"allowed_origins": ["https://shop.example"] * 101},
        {"require_resume_token": "perhaps"},
    ],
    ids=lambda config: repr(config)[:40],
)
def test_configurations_that_are_none(agent: Agent, committed_tenant: Tenant, config: dict[str, Any]) -> None:
    Api(committed_tenant)("PATCH", f"/api/v1/agents/{agent.pk}", {"config": config}, expect=422)
