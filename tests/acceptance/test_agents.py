"""Agents over HTTP: create, read, change, delete, list, and who may."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
import requests

from tests.acceptance.stack import Stack, new_model, new_session, wait_for

AGENTS = "/api/v1/agents"
NOBODY = "01a1f858-0000-7000-8000-000000000000"
CONFIG = {"provider": "openai", "model": "fake?tokens=2"}


def body(**fields: Any) -> dict[str, Any]:
    return {"name": "Reception", "type": "assistant", "config": CONFIG, **fields}


def create(stack: Stack, *, tenant: str = "demo", **fields: Any) -> dict[str, Any]:
    response = stack.request("POST", AGENTS, json=body(**fields), key=stack.tenants[tenant].key)
    assert response.status_code == 201, response.text
    resource: dict[str, Any] = response.json()
    return resource


def error_of(response: requests.Response, status: int) -> dict[str, Any]:
    """The error of an answer of that status, which must have the one shape."""
    assert response.status_code == status, response.text
    answer = response.json()
    assert answer.keys() == {"success", "error", "request_id"}
    assert answer["success"] is False
    assert answer["error"].keys() == {"type", "message", "details"}
    error: dict[str, Any] = answer["error"]
    return error


# --- Create -----------------------------------------------------------------------------------------


def test_a_created_agent_is_answered_whole(stack: Stack) -> None:
    config = CONFIG | {
        "instructions": "Be kind.",
        "temperature": 0.5,
        "max_output_tokens": 100,
        "timeout_seconds": 20,
        "max_turns": 3,
        "greeting": "Hi!",
    }
    slug = f"reception-{uuid.uuid4().hex[:8]}"
    response = stack.request(
        "POST", AGENTS, json=body(config=config, description="Answers", slug=slug), key=stack.demo.key
    )
    assert response.status_code == 201
    assert response.headers["ETag"] == '"1"'
    agent = response.json()
    assert uuid.UUID(agent["agent_id"])
    assert (agent["slug"], agent["version"], agent["status"]) == (slug, 1, "published")
    assert (agent["name"], agent["type"], agent["description"]) == ("Reception", "assistant", "Answers")
    assert agent["config"].items() >= config.items()
    assert datetime.fromisoformat(agent["created_at"]).tzinfo is not None
    read = stack.request("GET", f"{AGENTS}/{agent['agent_id']}", key=stack.demo.key)
    assert read.status_code == 200
    assert read.headers["ETag"] == '"1"'
    assert read.json() == agent


def test_a_slug_is_made_from_the_name(stack: Stack) -> None:
    agents = [create(stack, name=name) for name in ("Señor Müller", "Señor Müller", "日本", "a" * 120)]
    slugs = [agent["slug"] for agent in agents]
    assert slugs[0].startswith("senor-muller")
    assert len(set(slugs)) == 4
    assert all(re.fullmatch("[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", slug) for slug in slugs)


def test_a_draft_does_not_answer_until_it_is_published(stack: Stack) -> None:
    agent = create(stack, draft=True)
    assert agent["status"] == "draft"
    question = {"agent_id": agent["agent_id"], "message": "Hello"}
    refused = stack.request("POST", "/api/v1/chat/message", json=question)
    assert refused.status_code == 404
    assert refused.json()["error"]["type"] == "AgentNotFound"
    path = f"{AGENTS}/{agent['agent_id']}"
    published = stack.request("PATCH", path, json={"draft": False}, key=stack.demo.key)
    assert published.json()["status"] == "published"
    wait_for(lambda: stack.request("POST", "/api/v1/chat/message", json=question).status_code == 202)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 121}, "name"),
        ({"name": None}, "name"),
        ({"type": ""}, "type"),
        ({"type": "x" * 65}, "type"),
        ({"type": 5}, "type"),
        ({"slug": "Not A Slug"}, "slug"),
        ({"slug": "-x"}, "slug"),
        ({"slug": "x\n"}, "slug"),
        ({"slug": "x" * 41}, "slug"),
        ({"draft": "perhaps"}, "draft"),
        ({"nonsense": 1}, "nonsense"),
        ({"agent_id": NOBODY}, "agent_id"),
        ({"tenant_id": "other"}, "tenant_id"),
        ({"version": 7}, "version"),
        ({"status": "published"}, "status"),
        ({"actor": "root"}, "actor"),
        ({"config": None}, "config"),
        ({"config": []}, "config"),
        ({"config": {}}, "config.model"),
        ({"config": {"provider": "openai"}}, "config.model"),
        ({"config": {"model": "fake"}}, "config.provider"),
        ({"config": CONFIG | {"provider": "nobody"}}, "config.provider"),
        ({"config": CONFIG | {"model": ""}}, "config.model"),
        ({"config": CONFIG | {"model": "a\nb"}}, "config.model"),
        ({"config": CONFIG | {"nonsense": 1}}, "config.nonsense"),
        ({"config": CONFIG | {"temperature": 2.1}}, "config.temperature"),
        ({"config": CONFIG | {"temperature": "hot"}}, "config.temperature"),
        ({"config": CONFIG | {"max_output_tokens": 0}}, "config.max_output_tokens"),
        ({"config": CONFIG | {"timeout_seconds": 0}}, "config.timeout_seconds"),
        ({"config": CONFIG | {"timeout_seconds": -1}}, "config.timeout_seconds"),
        ({"config": CONFIG | {"max_turns": 0}}, "config.max_turns"),
        ({"config": CONFIG | {"context_tokens": 1}}, "config.context_tokens"),
        ({"config": CONFIG | {"instructions": 5}}, "config.instructions"),
    ],
)
def test_a_bad_field_is_named(stack: Stack, fields: dict[str, Any], named: str, nothing_stored: None) -> None:
    response = stack.request("POST", AGENTS, json=body(**fields), key=stack.demo.key)
    error = error_of(response, 422)
    assert error["type"] == "ValidationFailed"
    assert named in error["details"]


def test_a_slug_is_taken_once_in_a_tenant(stack: Stack) -> None:
    slug = f"taken-{uuid.uuid4().hex[:8]}"
    first = create(stack, slug=slug)
    error_of(stack.request("POST", AGENTS, json=body(slug=slug), key=stack.demo.key), 409)
    second = create(stack)
    path = f"{AGENTS}/{second['agent_id']}"
    error_of(stack.request("PATCH", path, json={"slug": slug}, key=stack.demo.key), 409)
    assert stack.request("GET", path, key=stack.demo.key).json() == second
    assert create(stack, tenant="other", slug=slug)["slug"] == slug
    deleted = stack.request("DELETE", f"{AGENTS}/{first['agent_id']}", key=stack.demo.key)
    assert deleted.status_code == 204
    assert create(stack, slug=slug)["slug"] == slug


def test_a_model_that_the_tier_does_not_list_is_refused(stack: Stack, nothing_stored: None) -> None:
    key = stack.tenants["small"].key
    config = {"provider": "openai", "model": "gpt-expensive"}
    error = error_of(stack.request("POST", AGENTS, json=body(config=config), key=key), 422)
    assert "config.model" in error["details"]


def test_a_change_to_a_model_that_the_tier_does_not_list_is_refused(stack: Stack) -> None:
    key = stack.tenants["small"].key
    agent = create(stack, tenant="small")
    path = f"{AGENTS}/{agent['agent_id']}"
    change = {"name": "Other", "config": {"model": "gpt-expensive"}}
    error = error_of(stack.request("PATCH", path, json=change, key=key), 422)
    assert "config.model" in error["details"]
    assert stack.request("GET", path, key=key).json() == agent


# --- Change -----------------------------------------------------------------------------------------


def test_a_changed_config_is_a_new_version(stack: Stack) -> None:
    agent = create(stack, config=CONFIG | {"instructions": "Be kind."})
    path = f"{AGENTS}/{agent['agent_id']}"
    response = stack.request("PATCH", path, json={"config": {"temperature": 1}}, key=stack.demo.key)
    assert response.status_code == 200
    assert response.headers["ETag"] == '"2"'
    changed = response.json()
    assert changed["version"] == 2
    assert changed["config"] == agent["config"] | {"temperature": 1}
    assert stack.request("GET", path, key=stack.demo.key).json() == changed


def test_a_change_that_changes_nothing_keeps_the_version(stack: Stack) -> None:
    agent = create(stack)
    path = f"{AGENTS}/{agent['agent_id']}"
    for change in ({}, {"config": CONFIG}, {"config": {}}):
        response = stack.request("PATCH", path, json=change, key=stack.demo.key)
        assert (response.status_code, response.json()["version"]) == (200, 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"name": ""}, "name"),
        ({"tenant_id": "other"}, "tenant_id"),
        ({"version": 9}, "version"),
        ({"actor": "root"}, "actor"),
        ({"agent_id": NOBODY}, "agent_id"),
        ({"config": {"nonsense": 1}}, "config.nonsense"),
        ({"config": {"temperature": 3}}, "config.temperature"),
        ({"config": {"model": ""}}, "config.model"),
        ({"config": 5}, "config"),
    ],
)
def test_a_bad_change_is_named_and_changes_nothing(stack: Stack, change: dict[str, Any], named: str) -> None:
    agent = create(stack)
    path = f"{AGENTS}/{agent['agent_id']}"
    error = error_of(stack.request("PATCH", path, json={"name": "New", **change}, key=stack.demo.key), 422)
    assert named in error["details"]
    assert stack.request("GET", path, key=stack.demo.key).json() == agent


def test_a_run_keeps_the_version_that_was_in_force_when_it_was_asked_for(stack: Stack) -> None:
    old, new = new_model("fake?tokens=1"), new_model("fake?tokens=2")
    agent_id, session_id = stack.agent(old), new_session()
    with stack.socket(session_id) as socket:
        with stack.agents_paused():
            stack.ask(agent_id, session_id=session_id)
            change = {"config": {"model": new}}
            changed = stack.request("PATCH", f"{AGENTS}/{agent_id}", json=change, key=stack.demo.key)
            assert changed.json()["version"] == 2
        started = socket.turn().check().data("agent_execution_started")
        assert (started["agent_id"], started["version"]) == (agent_id, 1)
        assert len(stack.model.entries(old)) == 1

        def runs_the_new_one() -> bool:
            stack.ask(agent_id, session_id=session_id)
            return bool(socket.turn().data("agent_execution_started")["version"] == 2)

        wait_for(runs_the_new_one)
    assert len(stack.model.entries(new)) == 1


def test_changes_at_the_same_time_are_versions_one_after_another(stack: Stack) -> None:
    agent = create(stack)
    path = f"{AGENTS}/{agent['agent_id']}"

    def change(turns: int) -> int:
        body = {"config": {"max_turns": turns}}
        return int(stack.request("PATCH", path, json=body, key=stack.demo.key).json()["version"])

    with ThreadPoolExecutor(max_workers=8) as pool:
        versions = list(pool.map(change, range(20, 28)))
    assert sorted(versions) == list(range(2, 10))
    assert stack.request("GET", path, key=stack.demo.key).json()["version"] == 9


def test_agents_of_one_name_that_are_made_at_the_same_time_all_get_a_slug(stack: Stack) -> None:
    name = f"Twin {uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(max_workers=8) as pool:
        agents = list(pool.map(lambda _: create(stack, name=name), range(8)))
    assert len({agent["slug"] for agent in agents}) == 8


# --- Delete -----------------------------------------------------------------------------------------


def test_a_deleted_agent_is_gone_and_its_conversations_stay(stack: Stack) -> None:
    agent = create(stack)
    asked = stack.ask(agent["agent_id"])
    stack.finished(asked["task_id"])
    path = f"{AGENTS}/{agent['agent_id']}"
    response = stack.request("DELETE", path, key=stack.demo.key)
    assert (response.status_code, response.content) == (204, b"")
    for again in (
        stack.request("GET", path, key=stack.demo.key),
        stack.request("PATCH", path, json={"name": "Back"}, key=stack.demo.key),
        stack.request("DELETE", path, key=stack.demo.key),
    ):
        assert error_of(again, 404)["type"] == "AgentNotFound"
    question = {"agent_id": agent["agent_id"], "message": "Hello?"}
    wait_for(lambda: stack.request("POST", "/api/v1/chat/message", json=question).status_code == 404)
    assert stack.status(asked["task_id"])["status"] == "completed"
    assert len(stack.messages(asked["session_id"])) >= 2


# --- List -------------------------------------------------------------------------------------------


def test_agents_are_listed_in_pages(stack: Stack) -> None:
    key = stack.tenants["shelf"].key
    assert stack.request("GET", AGENTS, key=key).json() == {"items": [], "next": None}
    made = [create(stack, tenant="shelf", name=f"Agent {number}") for number in range(5)]
    gone = create(stack, tenant="shelf", name="Gone")
    stack.request("DELETE", f"{AGENTS}/{gone['agent_id']}", key=key)
    listed: list[dict[str, Any]] = []
    cursor, sizes = None, []
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = stack.request("GET", AGENTS, params=params, key=key).json()
        assert page.keys() == {"items", "next"}
        listed += page["items"]
        sizes.append(len(page["items"]))
        cursor = page["next"]
        if cursor is None:
            break
    assert listed == made
    assert sizes == [2, 2, 1]
    assert stack.request("GET", AGENTS, params={"limit": 5}, key=key).json() == {"items": made, "next": None}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=201", "limit=" + "9" * 400, "limit=%00", "cursor=x"]
)
def test_a_bad_page_is_refused_by_name(stack: Stack, query: str) -> None:
    error = error_of(stack.request("GET", f"{AGENTS}?{query}", key=stack.demo.key), 422)
    assert query.partition("=")[0] in error["details"]


# --- Who may ----------------------------------------------------------------------------------------


def attempts(stack: Stack, agent_id: str, key: str | None, **options: Any) -> dict[str, requests.Response]:
    """Every verb of agents, tried with that key."""
    path = f"{AGENTS}/{agent_id}"
    return {
        "list": stack.request("GET", AGENTS, key=key, **options),
        "read": stack.request("GET", path, key=key, **options),
        "create": stack.request("POST", AGENTS, json=body(), key=key, **options),
        "update": stack.request("PATCH", path, json={"name": "Mine"}, key=key, **options),
        "delete": stack.request("DELETE", path, key=key, **options),
    }


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Bearer nbk_000000000000_" + "A" * 43,
        "Basic YWRtaW46YWRtaW4=",
        "nonsense",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 4000,
    ],
)
def test_without_a_key_nothing_is_shown(stack: Stack, header: str | None, nothing_stored: None) -> None:
    agent_id = stack.request("GET", AGENTS, key=stack.demo.key).json()["items"][0]["agent_id"]
    headers = {"Authorization": header.encode("latin-1")} if header is not None else {}
    for response in attempts(stack, agent_id, None, headers=headers).values():
        assert error_of(response, 401)["type"] == "AuthenticationRequired"
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_with_one_wrong_character_or_revoked_is_none(stack: Stack, nothing_stored: None) -> None:
    agent_id = stack.request("GET", AGENTS, key=stack.demo.key).json()["items"][0]["agent_id"]
    key = stack.demo.key
    altered = key[:-1] + ("A" if key[-1] != "A" else "B")
    for bad in (altered, key + "A", key[:-1], stack.demo.keys["revoked"]):
        for response in attempts(stack, agent_id, bad).values():
            error_of(response, 401)


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        ("reads agents", {"list": 200, "read": 200}),
        ("writes agents", {"create": 201, "update": 200, "delete": 204}),
        ("chats", {}),
    ],
)
def test_a_key_does_what_its_scopes_say(stack: Stack, kind: str, allowed: dict[str, int]) -> None:
    agent = create(stack)
    for verb, response in attempts(stack, agent["agent_id"], stack.demo.keys[kind]).items():
        if verb in allowed:
            assert response.status_code == allowed[verb], (verb, response.text)
        else:
            right = "read" if verb in ("list", "read") else "write"
            assert error_of(response, 403)["details"] == {"scope": f"agents:{right}"}


def test_an_agent_of_another_tenant_answers_like_one_that_does_not_exist(stack: Stack) -> None:
    agent = create(stack)
    key = stack.tenants["other"].key
    foreign, absent = (attempts(stack, agent_id, key) for agent_id in (agent["agent_id"], NOBODY))
    for verb in ("read", "update", "delete"):
        assert error_of(foreign[verb], 404) == error_of(absent[verb], 404)
        assert foreign[verb].headers.keys() == absent[verb].headers.keys()
    assert agent["agent_id"] not in foreign["list"].text
    assert stack.request("GET", f"{AGENTS}/{agent['agent_id']}", key=stack.demo.key).json() == agent


@pytest.mark.parametrize("bad", ["x", "1", "%00", "a:b", "%0a", NOBODY + "0"])
def test_an_agent_id_that_is_none_is_not_found(stack: Stack, bad: str, nothing_stored: None) -> None:
    responses = attempts(stack, bad, stack.demo.keys["reads agents"])
    assert error_of(responses["read"], 404)["type"] == "AgentNotFound"
    for method in ("PATCH", "DELETE"):
        response = stack.request(method, f"{AGENTS}/{bad}", json={}, key=stack.demo.key)
        assert error_of(response, 404)["type"] == "AgentNotFound"
