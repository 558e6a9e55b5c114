"""What holds for every operation of the OpenAPI schema, and where the schema is stricter than Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from drf_spectacular.generators import SchemaGenerator
from pydantic import BaseModel, Field, ValidationError

from agents.actions import AgentRollback, AgentUpdate
from agents.config import AgentConfig
from core.rules import WHOLE

Operation = dict[str, Any]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = SchemaGenerator().get_schema(public=True)
    return found


@pytest.fixture(scope="module")
def operations(schema: dict[str, Any]) -> dict[str, Operation]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }


def test_every_operation_says_what_it_refuses(operations: dict[str, Operation]) -> None:
    for name, operation in operations.items():
        answers = operation["responses"]
        assert {"4XX", "429", "503"} <= answers.keys(), name
        assert all("X-Request-ID" in answer["headers"] for answer in answers.values()), name
        assert "Retry-After" in answers["429"]["headers"], name
        assert [status for status in answers if status.startswith("2")], name


def test_who_may_call_is_said_of_every_operation(operations: dict[str, Operation]) -> None:
    for name, operation in operations.items():
        schemes = {scheme for option in operation.get("security", ()) for scheme in option}
        path = name.partition(" ")[2]
        if path.startswith("/internal/"):
            assert schemes == {"serviceToken"}, name
        elif path.startswith(("/api/v1/chat/", "/api/chat/", "/api/v1/sessions/{session_id}/messages")):
            assert schemes <= {"tenantKey", "endUserToken"}, name
        elif path.startswith(("/api/v1/", "/v1/")):
            assert schemes == {"tenantKey"}, name


def test_ids_in_addresses_are_spelled_out(operations: dict[str, Operation]) -> None:
    for name, operation in operations.items():
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                assert parameter["schema"] != {"type": "string"}, name


def test_an_agent_comes_with_its_etag(operations: dict[str, Operation]) -> None:
    shown = [
        name
        for name, operation in operations.items()
        if any("ETag" in answer["headers"] for answer in operation["responses"].values())
    ]
    assert {"POST /api/v1/agents", "GET /api/v1/agents/{agent_id}", "PATCH /api/v1/agents/{agent_id}"} <= {
        *shown
    }
    assert "GET /api/v1/agents" not in shown


def test_a_request_is_described_as_it_is_taken(schema: dict[str, Any]) -> None:
    """An amount is taken as a number as well; it is given as a text."""
    shapes = schema["components"]["schemas"]
    taken = shapes["BudgetCreateRequest"]["properties"]["limit_cost"]["anyOf"]
    assert {"number", "string"} <= {option.get("type") for option in taken}
    given = shapes["BudgetResource"]["properties"]["limit_cost"]["anyOf"]
    assert {option.get("type") for option in given} == {"string", "null"}


def test_every_bound_is_one_that_json_schema_knows(schema: dict[str, Any]) -> None:
    """pydantic leaves its own words there where it cannot say a bound."""
    assert not {"ge", "gt", "le", "lt", "min_length", "max_length"} & {
        *_words(schema["components"]["schemas"])
    }


def _words(part: Any) -> Iterator[str]:
    """The keywords, and names, anywhere inside."""
    if isinstance(part, dict):
        yield from part
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _words(value)


class Counted(BaseModel):
    number: Annotated[int, Field(ge=1, le=9), WHOLE] | None = None


def test_bounds_are_in_the_schema() -> None:
    (number, _null) = Counted.model_json_schema()["properties"]["number"]["anyOf"]
    assert number == {"type": "integer", "minimum": 1, "maximum": 9}


@pytest.mark.parametrize("number", [5, 5.0, None])
def test_a_whole_number_is_one_as_json_sees_it(number: Any) -> None:
    assert Counted(number=number).number == number


@pytest.mark.parametrize("number", ["5", True, False, 5.5, [], {}])
def test_nothing_else_is_a_whole_number(number: Any) -> None:
    with pytest.raises(ValidationError):
        Counted(number=number)


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        (AgentUpdate, {"draft": "yes"}),
        (AgentUpdate, {"publish": 1}),
        (AgentRollback, {"version": "1"}),
        (AgentConfig, {"provider": "x", "model": "x", "temperature": "0.5"}),
        (AgentConfig, {"provider": "x", "model": "x", "temperature": True}),
        (AgentConfig, {"provider": "x", "model": "x", "max_turns": "3"}),
        (AgentConfig, {"provider": "x", "model": "x", "require_resume_token": "false"}),
    ],
    ids=repr,
)
def test_what_the_schema_forbids_is_not_read_as_something_else(
    shape: type[BaseModel], fields: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        shape(**fields)
