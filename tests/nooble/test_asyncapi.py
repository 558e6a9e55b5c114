"""`/asyncapi.json`: whole, and true to the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from django.test import Client

from core.actions.registry import all_handlers
from core.events.base import Event
from nooble.reference.asyncapi import document
from nooble.reference.classes import own_subclasses
from orchestrator.consumers import ACTIONS
from orchestrator.events import NOTICES
from orchestrator.handlers.services import OF_TASKS


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    return document()


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_it_is_served_to_everybody(client: Client, api: dict[str, Any]) -> None:
    answer = client.get("/asyncapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.content) == json.loads(json.dumps(api))
    assert api["asyncapi"] == "3.0.0"


def test_every_reference_leads_somewhere(api: dict[str, Any]) -> None:
    for reference in references(api):
        place: Any = api
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_event_is_in_it(api: dict[str, Any]) -> None:
    told = {
        schema["properties"]["event"].get("const")
        for schema in api["components"]["schemas"].values()
        if "event" in schema.get("properties", {})
    }
    names = {
        name for event in own_subclasses(Event) for name in get_args(event.model_fields["event"].annotation)
    }
    assert names <= told


def test_notices_of_no_session_are_not_told_to_sessions(api: dict[str, Any]) -> None:
    schemas = api["components"]["schemas"]
    messages = [part["$ref"].rpartition("/")[2] for part in api["operations"]["tellSession"]["messages"]]
    events = {schemas[name]["properties"]["event"].get("const") for name in messages}
    assert events & NOTICES == {"task_status_update", "task_completed", "task_failed"}


def test_what_services_tell_sessions_is_in_it_by_name(api: dict[str, Any]) -> None:
    schemas = api["components"]["schemas"]
    messages = [part["$ref"].rpartition("/")[2] for part in api["operations"]["tellSession"]["messages"]]
    assert OF_TASKS.keys() <= {schemas[name]["properties"]["event"].get("const") for name in messages}
    progress = schemas["RunProgress"]
    assert (progress["required"], progress["additionalProperties"]) == (["stage"], True)


def test_a_services_first_frame_is_as_open_as_the_socket(api: dict[str, Any]) -> None:
    assert api["components"]["schemas"]["Handshake"].get("additionalProperties", True) is True


def test_every_queued_action_has_its_queue(api: dict[str, Any]) -> None:
    for handler in all_handlers():
        if handler.action.queue is not None:
            domain, name = handler.action.queue
            channel = api["channels"][handler.action.verb]
            assert channel["address"] == f"{domain}:{{tenant_id}}:{name}:{{priority}}"


@pytest.mark.parametrize("verb", sorted(ACTIONS))
def test_every_action_of_a_client_is_a_frame(api: dict[str, Any], verb: str) -> None:
    schema = api["components"]["schemas"][ACTIONS[verb].__name__]
    assert schema["properties"]["action"] == {"const": verb}
    assert schema["required"][0] == "action"
    assert schema["additionalProperties"] is False


def test_every_event_of_a_session_has_a_place_in_its_log(api: dict[str, Any]) -> None:
    schema = api["components"]["schemas"]["AgentResponseToken"]
    assert schema["required"] == list(schema["properties"]) and schema["required"][0] == "seq"
