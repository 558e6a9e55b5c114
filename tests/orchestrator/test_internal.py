"""The internal API: services of the platform, with its token, for a tenant that they name."""

from __future__ import annotations

import datetime
import json
import uuid
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client

from agents.models import Agent
from core.models import Notice, Task, Tenant
from core.ratelimits import REFUSED_TOKENS
from tests.factories import make_agent, make_key, make_task, make_tenant

TOKEN = "only-for-tests-service-token"
ROOT = "/internal/v1"
NEVER = uuid.UUID(int=1)


@pytest.fixture(autouse=True)
def service_token(settings: Any) -> None:
    settings.SERVICE_TOKEN = TOKEN


@pytest.fixture
def agent(tenant: Tenant) -> Agent:
    return make_agent(tenant, instructions="Be kind.")


def call(
    method: str, path: str, body: Any = None, *, token: str | None = TOKEN, expect: int = 200, **headers: str
) -> Any:
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    data = json.dumps(body) if body is not None else ""
    answer = Client().generic(method, ROOT + path, data, content_type="application/json", headers=headers)
    assert answer.status_code == expect, answer.content
    return answer.json()


def run_of(agent: Agent, **fields: Any) -> dict[str, Any]:
    return {"tenant_id": agent.tenant_id, "agent_id": str(agent.pk), "input": "Hello", **fields}


def told(event: str, tenant_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "event": event,
        "service": "agent-management-service",
        "tenant_id": tenant_id,
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
        **fields,
    }


# --- Who gets in -----------------------------------------------------------------------------------

EVERY = [
    ("GET", "/health"),
    ("GET", f"/agents/{NEVER}?tenant_id=demo"),
    ("POST", f"/agents/{NEVER}/validate"),
    ("GET", f"/tasks/{NEVER}?tenant_id=demo"),
    ("POST", "/task_updates"),
    ("POST", "/executions"),
]


@pytest.mark.parametrize(("method", "path"), EVERY, ids=[f"{method} {path[:8]}" for method, path in EVERY])
def test_only_the_platforms_token_opens(tenant: Tenant, settings: Any, method: str, path: str) -> None:
    for token in (None, "", "x", TOKEN[:-1], f"{TOKEN}x", make_key(tenant)[1]):
        error = call(method, path, token=token, expect=401)["error"]
        assert error["type"] == "ServiceTokenRequired"
    settings.SERVICE_TOKEN = ""
    for token in (None, "", TOKEN):
        call(method, path, token=token, expect=401)


def test_too_many_refused_tokens(agent: Agent) -> None:
    for _ in range(REFUSED_TOKENS):
        call("GET", f"/tasks/{NEVER}?tenant_id={agent.tenant_id}", token="guessed", expect=401)
    call("GET", f"/tasks/{NEVER}?tenant_id={agent.tenant_id}", token="guessed", expect=429)
    call("GET", f"/agents/{agent.pk}?tenant_id={agent.tenant_id}")
    call("GET", f"/tasks/{NEVER}?tenant_id={agent.tenant_id}", token=None, expect=401)


def test_the_health_of_the_platform(db: None) -> None:
    shown = Client().get(f"{ROOT}/health", headers={"authorization": f"Bearer {TOKEN}"})
    assert shown.status_code == Client().get("/health/detailed").status_code
    assert shown.json()["components"].keys() == Client().get("/health/detailed").json()["components"].keys()


# --- Agents ----------------------------------------------------------------------------------------


def test_the_configuration_of_an_agent(agent: Agent) -> None:
    shown = call("GET", f"/agents/{agent.pk}?tenant_id={agent.tenant_id}")
    assert shown["config"]["instructions"] == "Be kind."
    assert {name: shown[name] for name in shown if name != "config"} == {
        "agent_id": str(agent.pk),
        "tenant_id": agent.tenant_id,
        "slug": agent.slug,
        "name": "Test agent",
        "type": "assistant",
        "version": 1,
    }
    key = make_key(agent.tenant)[1]
    change = json.dumps({"config": {"instructions": "Be brief."}})
    Client().patch(
        f"/api/v1/agents/{agent.pk}",
        change,
        content_type="application/json",
        headers={"authorization": f"Bearer {key}"},
    )
    address = f"/agents/{agent.pk}?tenant_id={agent.tenant_id}&version="
    assert call("GET", f"{address}1")["config"]["instructions"] == "Be kind."
    assert call("GET", f"{address}2")["config"]["instructions"] == "Be brief."
    assert call("GET", f"{address}3", expect=404)["error"]["type"] == "VersionNotFound"
    call("GET", f"{address}x", expect=422)


def test_an_agent_is_found_in_its_tenant_only(agent: Agent) -> None:
    other = make_tenant()
    draft = make_agent(agent.tenant, draft=True)
    for pk, tenant_id in (
        (agent.pk, other.pk),
        (draft.pk, agent.tenant_id),
        (uuid.uuid4(), agent.tenant_id),
        ("me", agent.tenant_id),
    ):
        assert (
            call("GET", f"/agents/{pk}?tenant_id={tenant_id}", expect=404)["error"]["type"] == "AgentNotFound"
        )
    call("GET", f"/agents/{agent.pk}", expect=422)
    call("GET", f"/agents/{agent.pk}?tenant_id=No_Tenant", expect=422)
    unknown = call("GET", f"/agents/{agent.pk}?tenant_id=nobody", expect=404)
    assert unknown["error"]["type"] == "TenantNotFound"


def test_whether_an_agent_will_answer(agent: Agent) -> None:
    body = {"tenant_id": agent.tenant_id}

    def check(one: Agent) -> dict[str, Any]:
        shown: dict[str, Any] = call("POST", f"/agents/{one.pk}/validate", body)
        return shown

    assert check(agent) == {
        "agent_id": str(agent.pk),
        "tenant_id": agent.tenant_id,
        "valid": True,
        "published_version": 1,
        "suspended": False,
        "findings": [],
    }
    draft = check(make_agent(agent.tenant, draft=True))
    assert (draft["valid"], draft["published_version"]) == (False, None)
    Agent.unscoped.filter(pk=agent.pk).update(suspended_at=Now())
    assert (check(agent)["valid"], check(agent)["suspended"]) == (False, True)
    finding = {"field": "config.model", "code": "model_unknown", "level": "error", "values": {}}
    known = {"version": 1, "checked_at": "2026-11-20T00:00:00+00:00", "problems": [finding]}
    finding["values"] = {"provider": "openai", "model": "x"}
    Agent.unscoped.filter(pk=agent.pk).update(suspended_at=None, validation=known)
    found = check(agent)
    assert (found["valid"], [one["code"] for one in found["findings"]]) == (False, ["model_unknown"])
    foreign = {"tenant_id": make_tenant().pk}
    call("POST", f"/agents/{agent.pk}/validate", foreign, expect=404)
    call("POST", f"/agents/{agent.pk}/validate", {}, expect=422)
    call("POST", f"/agents/{agent.pk}/validate", {**body, "deep": True}, expect=422)


# --- Tasks -----------------------------------------------------------------------------------------


def test_a_task_of_the_tenant(tenant: Tenant) -> None:
    task = make_task(tenant, result={"text": "Hi"})
    shown = call("GET", f"/tasks/{task.pk}?tenant_id={tenant.pk}")
    assert (shown["task_id"], shown["action"], shown["status"], shown["attempt"], shown["result"]) == (
        str(task.pk),
        "test.nothing",
        "pending",
        0,
        {"text": "Hi"},
    )
    assert (shown["tenant_id"], shown["session_id"], shown["queue"]) == (tenant.pk, "", task.queue)
    for pk, tenant_id in ((task.pk, make_tenant().pk), (uuid.uuid4(), tenant.pk), ("me", tenant.pk)):
        assert (
            call("GET", f"/tasks/{pk}?tenant_id={tenant_id}", expect=404)["error"]["type"] == "TaskNotFound"
        )


def test_an_event_is_told_as_over_the_socket(agent: Agent) -> None:
    data = {"agent_id": str(agent.pk), "agent_name": "A", "agent_type": "b"}
    event_id = str(uuid.uuid4())
    body = told("agent_updated", agent.tenant_id, data=data, event_id=event_id)
    for _ in range(2):
        answer = call("POST", "/task_updates", body)
        assert (answer["success"], answer["action_id"]) == (True, event_id)
    notice = Notice.unscoped.get(tenant=agent.tenant_id)
    assert (notice.event, str(notice.event_id)) == ("agent_updated", event_id)
    task = make_task(agent.tenant)
    body = told("task_completed", make_tenant().pk, task_id=str(task.pk), data={})
    assert call("POST", "/task_updates", body, expect=404)["error"]["type"] == "TaskNotFound"
    call("POST", "/task_updates", told("agent_updated", "nobody", data=data), expect=404)
    call("POST", "/task_updates", told("agent_updated", agent.tenant_id), expect=422)
    call("POST", "/task_updates", body | {"service": "stranger"}, expect=422)


# --- Executions ------------------------------------------------------------------------------------


def test_a_run_for_a_tenant(agent: Agent) -> None:
    made = call("POST", "/executions", run_of(agent, user_id="ada", priority="low"), expect=202)
    task = Task.unscoped.get(pk=made["task_id"])
    assert (task.tenant_id, task.agent_id, task.queue) == (
        agent.tenant_id,
        agent.pk,
        f"agent:{agent.tenant_id}:execute:low",
    )
    assert task.payload["messages"] == [{"role": "user", "content": "Hello"}]
    foreign = run_of(agent) | {"tenant_id": make_tenant().pk}
    assert call("POST", "/executions", foreign, expect=404)["error"]["type"] == "AgentNotFound"
    for wrong in ({"tenant_id": None}, {"wait": 5}, {"input": None}, {"colour": 1}):
        call("POST", "/executions", run_of(agent) | wrong, expect=422)
    assert Task.unscoped.filter(action="agent.execute").count() == 1


def test_the_same_request_is_one_run(agent: Agent) -> None:
    key = {"idempotency-key": uuid.uuid4().hex}
    first = call("POST", "/executions", run_of(agent), expect=202, **key)
    assert call("POST", "/executions", run_of(agent), expect=202, **key) == first
    call("POST", "/executions", run_of(agent, input="Other"), expect=409, **key)
    short = {"idempotency-key": "short-but-16-long"}
    call("POST", "/executions", run_of(agent), expect=422, **short)
