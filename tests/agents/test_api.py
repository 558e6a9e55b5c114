"""Versions and moves over HTTP: addresses, shapes, headers, refusals."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client

from agents.models import Agent, AgentVersion
from core.api.parsers import MAX_BODY, MAX_IMPORT
from core.models import Tenant
from tests.factories import make_agent, make_key, make_tenant

AGENTS = "/api/v1/agents"
# For tests that go on after a refusal, which ends its transaction.
committed = pytest.mark.django_db(transaction=True)
Call = Callable[..., Any]


def caller(client: Client, tenant: Tenant, *scopes: str) -> Call:
    """`call(method, path, body, **headers)` with a key of the tenant's."""
    _, text = make_key(tenant, scopes) if scopes else make_key(tenant)

    def call(method: str, path: str, body: Any = None, **headers: str) -> HttpResponse:
        sent = {
            "Authorization": f"Bearer {text}",
            **{name.replace("_", "-"): v for name, v in headers.items()},
        }
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        answer: HttpResponse = client.generic(
            method, f"{AGENTS}{path}", data, content_type="application/json", headers=sent
        )
        return answer

    return call


@pytest.fixture
def call(client: Client, tenant: Tenant) -> Call:
    return caller(client, tenant)


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.content
    error: dict[str, Any] = response.json()["error"]
    return error


def test_a_change_may_carry_a_note_and_wait(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    response = call("PATCH", f"/{agent.pk}", {"config": {"max_turns": 3}, "note": "Less", "publish": False})
    assert (response.status_code, response["ETag"]) == (200, '"2"')
    body = response.json()
    assert (body["version"], body["published_version"], body["etag"]) == (2, 1, "2")
    published = call("POST", f"/{agent.pk}/publish")
    assert (published.status_code, published["ETag"]) == (200, '"2.1"')
    assert published.json()["published_version"] == 2
    assert call("GET", f"/{agent.pk}/versions/2").json()["note"] == "Less"


def test_versions_are_listed_read_and_compared(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions="One\nTwo")
    for text in ("One\nThree", "Four"):
        call("PATCH", f"/{agent.pk}", {"config": {"instructions": text}, "note": text[:3]})
    page = call("GET", f"/{agent.pk}/versions?limit=2").json()
    assert [item["version"] for item in page["items"]] == [3, 2]
    rest = call("GET", f"/{agent.pk}/versions?limit=2&cursor={page['next']}").json()
    assert ([item["version"] for item in rest["items"]], rest["next"]) == ([1], None)
    newest = page["items"][0]
    assert newest.keys() == {"agent_id", "version", "author", "note", "published", "created_at", "config"}
    assert (newest["note"], newest["published"], newest["config"]["instructions"]) == ("Fou", True, "Four")
    assert newest["author"].startswith("key:")
    assert call("GET", f"/{agent.pk}/versions/3").json() == newest

    diff = call("GET", f"/{agent.pk}/diff?from=1&to=2").json()
    [change] = diff.pop("diff")
    assert diff == {"agent_id": str(agent.pk), "from": 1, "to": 2}
    assert (change["field"], change["before"], change["after"]) == (
        "config.instructions",
        "One\nTwo",
        "One\nThree",
    )
    assert "+Three" in change["diff"].splitlines()
    assert call("GET", f"/{agent.pk}/diff?from=2&to=2").json()["diff"] == []
    back = call("GET", f"/{agent.pk}/diff?from=2&to=1").json()["diff"][0]
    assert (back["before"], back["after"]) == ("One\nThree", "One\nTwo")


@pytest.mark.parametrize("number", ["0", "2", "-1", "x", "1.0", "%00", "9" * 30, "¹"])
def test_a_version_that_never_was_is_not_found(call: Call, tenant: Tenant, number: str) -> None:
    agent = make_agent(tenant)
    assert error_of(call("GET", f"/{agent.pk}/versions/{number}"), 404)["type"] == "VersionNotFound"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("", {"from", "to"}),
        ("?from=1", {"to"}),
        ("?to=1", {"from"}),
        ("?from=x&to=1", {"from"}),
        ("?from=1&to=0", {"to"}),
        ("?from=1&to=-1", {"to"}),
        ("?from=1&to=" + "9" * 400, {"to"}),
    ],
)
def test_a_comparison_needs_two_numbers(call: Call, tenant: Tenant, query: str, named: set[str]) -> None:
    agent = make_agent(tenant)
    assert set(error_of(call("GET", f"/{agent.pk}/diff{query}"), 422)["details"]) == named


def test_a_comparison_with_a_version_that_never_was_is_not_found(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    assert error_of(call("GET", f"/{agent.pk}/diff?from=1&to=9"), 404)["type"] == "VersionNotFound"


def test_a_rollback_answers_the_agent(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    call("PATCH", f"/{agent.pk}", {"config": {"model": "long"}})
    response = call("POST", f"/{agent.pk}/rollback", {"version": 1, "note": "Too long"})
    assert (response.status_code, response["ETag"]) == (200, '"3"')
    assert (response.json()["version"], response.json()["config"]["model"]) == (3, "echo")
    assert call("GET", f"/{agent.pk}").json() == response.json()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "version"),
        ({"version": 0}, "version"),
        ({"version": -1}, "version"),
        ({"version": None}, "version"),
        ({"version": "one"}, "version"),
        ({"version": 2**31}, "version"),
        ({"version": 1, "nonsense": 1}, "nonsense"),
        ({"version": 1, "actor": "root"}, "actor"),
        ({"version": 1, "note": "x" * 501}, "note"),
        ({"version": 1, "if_match": ["1"]}, "if_match"),
    ],
)
def test_a_bad_rollback_is_named(call: Call, tenant: Tenant, body: dict[str, Any], named: str) -> None:
    agent = make_agent(tenant)
    assert named in error_of(call("POST", f"/{agent.pk}/rollback", body), 422)["details"]
    assert AgentVersion.unscoped.filter(agent=agent).count() == 1


@pytest.mark.parametrize("verb", ["publish", "restore"])
def test_a_verb_without_fields_takes_none(call: Call, tenant: Tenant, verb: str) -> None:
    agent = make_agent(tenant)
    assert call("POST", f"/{agent.pk}/{verb}", {}).status_code == 200
    assert "version" in error_of(call("POST", f"/{agent.pk}/{verb}", {"version": 1}), 422)["details"]


# --- If-Match ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ['"1"', 'W/"1"', '"9", "1"', "*", "1", ' "1" '])
def test_the_present_state_may_be_changed(call: Call, tenant: Tenant, tag: str) -> None:
    agent = make_agent(tenant)
    response = call("PATCH", f"/{agent.pk}", {"name": "Grace"}, If_Match=tag)
    assert (response.status_code, response["ETag"]) == (200, '"1.1"')


@committed
def test_a_stale_change_is_refused_with_the_difference(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    seen = call("GET", f"/{agent.pk}")["ETag"]
    call("PATCH", f"/{agent.pk}", {"name": "Grace", "config": {"temperature": 0.5}})
    for method, path, body in (
        ("PATCH", f"/{agent.pk}", {"config": {"temperature": 1}}),
        ("DELETE", f"/{agent.pk}", None),
        ("POST", f"/{agent.pk}/publish", None),
        ("POST", f"/{agent.pk}/rollback", {"version": 1}),
    ):
        error = error_of(call(method, path, body, If_Match=seen), 409)
        assert error["type"] == "StaleVersion"
        assert (error["details"]["etag"], error["details"]["version"]) == ("2", 2)
        assert {"field": "config.temperature", "before": None, "after": 0.5} in error["details"]["diff"]
        assert {"field": "name", "before": "Test agent", "after": "Grace"} in error["details"]["diff"]
    assert call("GET", f"/{agent.pk}").json()["config"]["temperature"] == 0.5
    # Without it the last one wins.
    assert call("PATCH", f"/{agent.pk}", {"config": {"temperature": 1}}).status_code == 200


@pytest.mark.parametrize("tag", ['"1', '"1"x', "", ",", '"a" "b"'])
def test_a_condition_that_says_nothing_is_refused_not_ignored(call: Call, tenant: Tenant, tag: str) -> None:
    agent = make_agent(tenant)
    response = call("PATCH", f"/{agent.pk}", {"name": "Grace"}, If_Match=tag)
    assert response.status_code in (409, 422)
    assert Agent.unscoped.get(pk=agent.pk).name == "Test agent"


# --- Moves ------------------------------------------------------------------------------------------


def test_an_exported_agent_can_be_imported(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant, slug="reception", instructions="Be kind.")
    document = call("GET", f"/{agent.pk}/export").json()
    response = call("POST", "/import", document)
    assert (response.status_code, response["ETag"]) == (201, '"1"')
    made = response.json()
    assert made["agent_id"] != str(agent.pk)
    assert made["slug"].startswith("reception-")
    again = call("GET", f"/{made['agent_id']}/export").json()
    assert again == document | {"slug": made["slug"]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"agent_id": str(uuid.uuid4())}, "agent_id"),
        ({"tenant_id": "other"}, "tenant_id"),
        ({"format": "x"}, "format"),
        ({"format_version": 2}, "format_version"),
        ({"config": {"provider": "scripted", "model": "echo", "nonsense": 1}}, "config.nonsense"),
        ({"config": {"provider": "scripted", "model": "echo", "api_key": "sk"}}, "config.api_key"),
    ],
)
def test_a_bad_document_is_named(call: Call, tenant: Tenant, change: dict[str, Any], named: str) -> None:
    agent = make_agent(tenant)
    document = call("GET", f"/{agent.pk}/export").json()
    assert named in error_of(call("POST", "/import", document | change), 422)["details"]
    assert Agent.unscoped.filter(tenant=tenant).count() == 1


def test_an_import_may_be_large_and_nothing_else(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    document = call("GET", f"/{agent.pk}/export").json()
    spaces = b" " * (MAX_BODY + 1)
    assert call("POST", "/import", json.dumps(document).encode() + spaces).status_code == 201
    assert error_of(call("PATCH", f"/{agent.pk}", b"{}" + spaces), 413)["details"] == {"limit": MAX_BODY}
    too_large = b"{}" + b" " * MAX_IMPORT
    assert error_of(call("POST", "/import", too_large), 413)["details"] == {"limit": MAX_IMPORT}


def test_a_duplicate_is_a_new_agent(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant, slug="reception")
    response = call("POST", f"/{agent.pk}/duplicate", {"name": "Second desk"})
    assert response.status_code == 201
    assert (response.json()["name"], response.json()["slug"]) == ("Second desk", "second-desk")
    assert call("POST", f"/{agent.pk}/duplicate").status_code == 201
    assert "nonsense" in error_of(call("POST", f"/{agent.pk}/duplicate", {"nonsense": 1}), 422)["details"]


def test_a_deleted_agent_is_found_and_restored(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    assert call("DELETE", f"/{agent.pk}").status_code == 204
    assert call("GET", "").json()["items"] == []
    [deleted] = call("GET", "?deleted=true").json()["items"]
    assert deleted["agent_id"] == str(agent.pk)
    restored = call("POST", f"/{agent.pk}/restore")
    assert (restored.status_code, restored.json()["agent_id"]) == (200, str(agent.pk))
    assert call("GET", "?deleted=true").json()["items"] == []
    assert len(call("GET", "?deleted=false").json()["items"]) == 1
    assert "deleted" in error_of(call("GET", "?deleted=perhaps"), 422)["details"]


# --- Who may ----------------------------------------------------------------------------------------

DOCUMENT = {
    "format": "nooble.agent",
    "format_version": 1,
    "name": "Ada",
    "type": "assistant",
    "config": {"provider": "scripted", "model": "echo"},
}
READS = ("/versions", "/versions/1", "/diff?from=1&to=1", "/export")
WRITES: dict[str, Any] = {"/publish": None, "/rollback": {"version": 1}, "/duplicate": None, "/restore": None}


@committed
@pytest.mark.parametrize("agent_id", ["foreign", "absent", "x", "%00"])
def test_what_is_not_ones_own_does_not_exist(call: Call, tenant: Tenant, agent_id: str) -> None:
    foreign = make_agent(make_tenant(), draft=True)
    path = {"foreign": str(foreign.pk), "absent": str(uuid.uuid4())}.get(agent_id, agent_id)
    for read in READS:
        assert error_of(call("GET", f"/{path}{read}"), 404)["type"] == "AgentNotFound"
    for write, body in WRITES.items():
        error = error_of(call("POST", f"/{path}{write}", body, If_Match='"1"'), 404)
        assert error == {"type": "AgentNotFound", "message": "Agent not found.", "details": {}}
    foreign.refresh_from_db()
    assert (foreign.version_id, foreign.edits, foreign.status) == (foreign.version_id, 0, "draft")
    assert not Agent.unscoped.filter(tenant=tenant).exists()


@committed
def test_a_deleted_agents_versions_are_hidden_until_it_is_restored(call: Call, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    call("DELETE", f"/{agent.pk}")
    for read in READS:
        error_of(call("GET", f"/{agent.pk}{read}"), 404)
    for write in ("/publish", "/rollback", "/duplicate"):
        error_of(call("POST", f"/{agent.pk}{write}", WRITES[write]), 404)


def test_a_key_does_what_its_scopes_say(client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    reader = caller(client, tenant, "agents:read")
    writer = caller(client, tenant, "agents:write")
    for read in READS:
        assert reader("GET", f"/{agent.pk}{read}").status_code == 200
        assert error_of(writer("GET", f"/{agent.pk}{read}"), 403)["details"] == {"scope": "agents:read"}
    for write, body in {
        **{f"/{agent.pk}{name}": body for name, body in WRITES.items()},
        "/import": DOCUMENT,
    }.items():
        assert error_of(reader("POST", write, body), 403)["details"] == {"scope": "agents:write"}
        assert writer("POST", write, body).status_code in (200, 201)
