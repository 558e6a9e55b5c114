"""What operators and newcomers look at: health, the schema, its page."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests
import yaml
from jsonschema import Draft202012Validator

from core.queues.names import DOMAINS
from tests.acceptance.stack import Stack

# Rows of the contract that exist from the first release on.
PATHS = {
    "/api/v1/chat/message": {"post"},
    "/api/v1/chat/status/{task_id}": {"get"},
    "/api/v1/chat/cancel/{task_id}": {"post"},
    "/api/chat/send": {"post"},
    "/api/chat/status": {"post"},
    "/api/chat/cancel": {"post"},
    "/api/v1/sessions/{session_id}/messages": {"get"},
    "/api/v1/agents": {"get", "post"},
    "/api/v1/agents/{agent_id}": {"get", "patch", "delete"},
    "/health": {"get"},
    "/health/detailed": {"get"},
    "/ws/stats": {"get"},
}


def test_health_says_that_the_web_answers(stack: Stack) -> None:
    response = stack.request("GET", "/health")
    assert response.status_code == 200
    assert response.json()["status"] == "ok"


def test_detailed_health_knows_every_domain(stack: Stack) -> None:
    response = stack.request("GET", "/health/detailed")
    assert response.status_code == 200
    body = response.json()
    assert body["status"] == "ok"
    assert body["components"].keys() >= set(DOMAINS)
    assert {component["status"] for component in body["components"].values()} == {"ok"}


@pytest.mark.parametrize("path", ["/health", "/health/detailed", "/ws/stats"])
def test_what_everybody_may_see_names_no_tenant(stack: Stack, path: str) -> None:
    text = stack.request("GET", path).text
    assert not [tenant for tenant in stack.tenants if f'"{tenant}"' in text]


@pytest.fixture(scope="module")
def schema(stack: Stack) -> dict[str, Any]:
    response = stack.request("GET", "/api/schema", headers={"Accept": "application/json"})
    assert response.status_code == 200
    assert "json" in response.headers["Content-Type"]
    document: dict[str, Any] = response.json()
    return document


def operations(schema: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    verbs = ("get", "post", "put", "patch", "delete")
    return {
        (path, verb): item[verb] for path, item in schema["paths"].items() for verb in verbs if verb in item
    }


def test_the_schema_is_openapi_3_1_in_json_and_yaml(stack: Stack, schema: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", schema["openapi"])
    assert schema["info"]["title"] and schema["info"]["version"]
    plain = stack.request("GET", "/api/schema")
    assert plain.status_code == 200
    assert yaml.safe_load(plain.text) == schema
    assert stack.request("GET", "/api/schema?format=json").json() == schema


def test_the_schema_tells_every_path(schema: dict[str, Any]) -> None:
    told = operations(schema)
    assert not [(path, verb) for path, verbs in PATHS.items() for verb in verbs if (path, verb) not in told]


def test_the_schemas_operations_are_whole(schema: dict[str, Any]) -> None:
    told = operations(schema)
    names = [operation["operationId"] for operation in told.values()]
    assert len(set(names)) == len(names)
    for (path, verb), operation in told.items():
        assert operation["responses"], (path, verb)
        declared = {item["name"] for item in operation.get("parameters", []) if item["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path)), (path, verb)


def test_the_schemas_references_lead_somewhere(schema: dict[str, Any]) -> None:
    references: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                references.add(node["$ref"])
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    collect(schema)
    assert references
    for reference in references:
        node: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_the_schemas_shapes_are_json_schema(schema: dict[str, Any]) -> None:
    for shape in schema["components"]["schemas"].values():
        Draft202012Validator.check_schema(shape)


def test_the_schema_tells_who_needs_a_key(schema: dict[str, Any]) -> None:
    told = operations(schema)
    schemes = schema["components"]["securitySchemes"]
    assert schemes.keys() == {"tenantKey", "endUserToken", "serviceToken"}
    assert {(value["type"], value["scheme"]) for value in schemes.values()} == {("http", "bearer")}

    def security(path: str, verb: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = told[path, verb].get("security", schema.get("security", []))
        return found

    assert security("/api/v1/agents", "post") == [{"tenantKey": []}]
    assert security("/internal/v1/executions", "post") == [{"serviceToken": []}]
    assert {"endUserToken": []} in security("/api/v1/chat/message", "post")
    # Chat is public: nothing is required there.
    for path, verb in (("/api/v1/chat/message", "post"), ("/health", "get")):
        assert security(path, verb) == [] or {} in security(path, verb), path


def test_the_agents_config_is_published(schema: dict[str, Any]) -> None:
    shapes = schema["components"]["schemas"]
    (config,) = [shape for name, shape in shapes.items() if name == "AgentConfig"]
    assert set(config["required"]) == {"provider", "model"}
    assert {
        "instructions",
        "temperature",
        "max_output_tokens",
        "timeout_seconds",
        "max_turns",
        "greeting",
    } <= set(config["properties"])


def test_answers_fit_the_schema_they_are_told_to_have(stack: Stack, schema: dict[str, Any]) -> None:
    told = operations(schema)

    def fits(response: requests.Response, path: str, verb: str) -> None:
        content = told[path, verb]["responses"][str(response.status_code)]["content"]
        shape = content["application/json"]["schema"] | {"components": schema["components"]}
        Draft202012Validator(shape).validate(response.json())

    agent_id = stack.agent("fake?tokens=2")
    asked = stack.ask(agent_id)
    stack.finished(asked["task_id"])
    key = stack.demo.key
    fits(stack.request("GET", "/api/v1/agents", key=key), "/api/v1/agents", "get")
    fits(stack.request("GET", f"/api/v1/agents/{agent_id}", key=key), "/api/v1/agents/{agent_id}", "get")
    status = stack.request("GET", f"/api/v1/chat/status/{asked['task_id']}")
    fits(status, "/api/v1/chat/status/{task_id}", "get")
    messages = "/api/v1/sessions/{session_id}/messages"
    fits(stack.request("GET", messages.format(session_id=asked["session_id"]), key=key), messages, "get")


def test_the_docs_page_needs_nothing_from_elsewhere(stack: Stack) -> None:
    response = stack.request("GET", "/api/docs")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert re.findall(r"""["'(=](?:https?:)?//[^"'\s)]+""", response.text) == []
    links = re.findall(r"""(?:src|href)=["']([^"']+)["']""", response.text)
    assert links
    for link in links:
        assert stack.request("GET", link).status_code == 200, link
