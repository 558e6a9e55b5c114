"""Providers of a tenant's own, checks and templates, end to end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.stack import Stack, new_model, new_session, wait_for

PROVIDERS = "/api/v1/providers"
TEMPLATES = "/api/v1/templates"
KEY = "sk-the-tenants-own-key"


def checked(stack: Stack, agent_id: str, key: str) -> dict[str, Any]:
    """What a worker finds out about the agent."""
    path = f"/api/v1/agents/{agent_id}"
    asked = stack.request("POST", f"{path}/validate", json={}, key=key)
    assert asked.status_code == 202, asked.text
    assert asked.json()["result"]["queue"] == "agent:own-keys:validate:low"

    def found() -> dict[str, Any]:
        validation = stack.request("GET", path, key=key).json()["validation"] or {}
        return validation if validation.get("checked_at") else {}

    return wait_for(found)


@pytest.fixture
def own(stack: Stack) -> Any:
    """A provider that leads to the fake model, of a tenant without the operator's keys."""
    key = stack.tenants["own-keys"].key
    body = {"name": "ours", "base_url": stack.model.base_url, "api_key": KEY}
    made = stack.request("POST", PROVIDERS, json=body, key=key)
    assert made.status_code == 201, made.text
    assert KEY not in made.text
    yield made.json()
    for agent in stack.request("GET", "/api/v1/agents", key=key).json()["items"]:
        if agent["config"]["provider"] == "ours":
            stack.request("DELETE", f"/api/v1/agents/{agent['agent_id']}", key=key)
    assert stack.request("DELETE", f"{PROVIDERS}/ours", key=key).status_code == 204


def test_an_agent_answers_with_the_tenants_own_key(stack: Stack, own: dict[str, Any]) -> None:
    assert own["check"]["ok"] is True
    key = stack.tenants["own-keys"].key
    model = new_model("fake?tokens=2")
    agent_id = stack.agent(model, tenant="own-keys", provider="ours")
    validation = checked(stack, agent_id, key)
    assert [finding["code"] for finding in validation["findings"]] == ["model_unknown"]
    session_id = new_session()
    with stack.socket(session_id, tenant="own-keys") as socket:
        stack.ask(agent_id, session_id=session_id)
        assert socket.turn().check().named("agent_execution_completed")
    assert stack.model.entry(model)["authorization"] == f"Bearer {KEY}"


def test_an_agent_that_cannot_answer_is_invalid(stack: Stack) -> None:
    key = stack.tenants["own-keys"].key
    validation = checked(stack, stack.agent("m", tenant="own-keys"), key)
    assert validation["status"] == "invalid"
    assert [finding["code"] for finding in validation["findings"]] == ["provider_not_configured"]


def test_a_shipped_template_becomes_an_agent_that_answers(stack: Stack) -> None:
    listed = stack.request("GET", TEMPLATES, key=stack.demo.key).json()["items"]
    [extractor] = [item for item in listed if item["slug"] == "data-extractor"]
    model = new_model("fake?tokens=2")
    body = {"name": "Invoices", "variables": {"fields": "total (number)"}, "config": {"model": model}}
    path = f"{TEMPLATES}/{extractor['template_id']}/instantiate"
    made = stack.request("POST", path, json=body, key=stack.demo.key)
    assert made.status_code == 201, made.text
    assert stack.finished(stack.ask(made.json()["agent_id"])["task_id"])["status"] == "completed"
    system = stack.model.entry(model)["messages"][0]["content"]
    assert "total (number)" in system
    assert "{{" not in system
