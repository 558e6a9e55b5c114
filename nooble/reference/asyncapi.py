"""`/asyncapi.json`: what goes over the sockets and through the queues, from the classes that do it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from core.actions.base import Action
from core.actions.registry import all_handlers
from core.api.errors import refused
from core.errors import MethodNotAllowed
from core.events.base import Event
from core.ids import SESSION_PATTERN, SLUG_PATTERN
from nooble.reference.classes import own_subclasses
from nooble.reference.markdown import summary
from orchestrator import controls
from orchestrator.actions import ServiceEventBody
from orchestrator.consumers import ACTIONS
from orchestrator.events import NOTICES

_OF_TASKS = {"task_status_update", "task_completed", "task_failed"}  # of sessions and of tenants
_CONTROLS = (
    controls.ConnectionEstablished,
    controls.Ping,
    controls.Pong,
    controls.ActionAnswer,
    controls.Refusal,
    controls.Snapshot,
    controls.Reconnect,
)
_WATCH_CONTROLS = (
    controls.WatchEstablished,
    controls.Update,
    controls.Ping,
    controls.Pong,
    controls.Refusal,
    controls.Reconnect,
)
_SERVICE_CONTROLS = (
    controls.Authenticated,
    controls.Ping,
    controls.Pong,
    controls.ActionAnswer,
    controls.Refusal,
    controls.Reconnect,
)
_REF = "#/components/schemas/{model}"


class TaskMessage(BaseModel):
    """The body of every queue message: ids only. Action, payload and callback stand in the task's row."""

    task_id: str
    tenant_id: str


class ClientPing(BaseModel):
    """A sign of life, answered by `pong`."""

    action: Literal["ping"]


@csrf_exempt  # nothing here acts on a cookie: a POST is a wrong method, not a forgery
def serve(request: HttpRequest) -> HttpResponse:
    """What sockets and queues carry: the AsyncAPI document."""
    if request.method not in ("GET", "HEAD"):
        response = refused(request, MethodNotAllowed())
        response["Allow"] = "GET, HEAD"
        return response
    return HttpResponse(_text(), content_type="application/json")


@functools.cache
def _text() -> bytes:
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2)


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document as plain data."""
    sessions, notices = _events()
    actions = [handler.action for handler in all_handlers() if handler.action.queue is not None]
    from_server: list[type[BaseModel]] = [*_CONTROLS, *_WATCH_CONTROLS, *_SERVICE_CONTROLS, *sessions]
    from_client: list[type[BaseModel]] = [
        *ACTIONS.values(),
        ClientPing,
        controls.Handshake,
        ServiceEventBody,
        TaskMessage,
    ]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": settings.SPECTACULAR_SETTINGS["TITLE"],
            "version": settings.SPECTACULAR_SETTINGS["VERSION"],
            "description": "Sockets and queue messages. HTTP: `/api/schema`. What the close codes mean, and"
            " the order of a turn: docs/events.md.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "session": _socket(
                "/ws/{tenant_id}/{session_id}",
                [*_CONTROLS, *sessions, *ACTIONS.values(), ClientPing],
                {"session_id": {"description": f"The session's id: {SESSION_PATTERN}"}},
                query={
                    "after": {"type": "integer", "minimum": 0, "description": "Resume after this seq"},
                    "user_id": {"type": "string"},
                },
            ),
            "tenantUpdates": {
                **_socket("/ws/tenants/{tenant_id}/updates", [*_WATCH_CONTROLS, ClientPing]),
                "description": "What an update's `data` holds, by its `event`: components/schemas of the"
                f" classes {', '.join(_name(notice) for notice in notices)}, `data`.",
            },
            "taskUpdates": _socket(
                "/ws/task_updates", [*_SERVICE_CONTROLS, controls.Handshake, ServiceEventBody, ClientPing]
            ),
            **{action.verb: _queue(action) for action in actions},
        },
        "operations": {
            "tellSession": _operation("send", "session", [*_CONTROLS, *sessions]),
            "hearSession": _operation("receive", "session", [*ACTIONS.values(), ClientPing]),
            "tellTenant": _operation("send", "tenantUpdates", _WATCH_CONTROLS),
            "hearTenant": _operation("receive", "tenantUpdates", [ClientPing]),
            "tellService": _operation("send", "taskUpdates", _SERVICE_CONTROLS),
            "hearService": _operation(
                "receive", "taskUpdates", [controls.Handshake, ServiceEventBody, ClientPing]
            ),
            **{f"send.{action.verb}": _operation("send", action.verb, [TaskMessage]) for action in actions},
            **{f"run.{action.verb}": _operation("receive", action.verb, [TaskMessage]) for action in actions},
        },
        "components": {
            "messages": {
                _name(shape): _message(shape) for shape in dict.fromkeys([*from_server, *from_client])
            },
            "schemas": _schemas([*from_server, *notices], from_client),
        },
    }


def _events() -> tuple[list[type[Event]], list[type[Event]]]:
    """One class for each name that a session may hear, and one for each that a tenant's dashboards may."""
    sessions: dict[str, type[Event]] = {}
    notices: dict[str, type[Event]] = {}
    for event in own_subclasses(Event):
        names = get_args(event.model_fields["event"].annotation)
        # A broadcast has whatever name its sender gave it.
        name = names[0] if names else event.__name__ if event.model_fields["data"].annotation else ""
        is_abstract = not names and event.__subclasses__()
        if is_abstract or not name:
            continue
        if name in NOTICES:
            notices.setdefault(name, event)
        if name not in NOTICES or name in _OF_TASKS:
            sessions.setdefault(name, event)
    return list(sessions.values()), list(notices.values())


def _socket(
    address: str,
    shapes: Iterable[type[BaseModel]],
    more: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    parameters = {"tenant_id": {"description": f"The tenant's id: {SLUG_PATTERN}"}, **(more or {})}
    channel: dict[str, Any] = {
        "address": address,
        "parameters": {name: value for name, value in parameters.items() if f"{{{name}}}" in address},
        "messages": _references(shapes),
    }
    if query:
        schema = {"type": "object", "properties": dict(query), "additionalProperties": False}
        channel["bindings"] = {"ws": {"query": schema, "bindingVersion": "0.1.0"}}
    return channel


def _queue(action: type[Action[Any]]) -> dict[str, Any]:
    assert action.queue is not None
    domain, name = action.queue
    return {
        "address": f"{domain}:{{tenant_id}}:{name}:{{priority}}",
        "description": f"{summary(action)} Celery's task is `{action.verb}`.",
        "parameters": {
            "tenant_id": {"description": f"The tenant's id ({SLUG_PATTERN}), or `_system`"},
            "priority": {"enum": ["low", "normal", "high"]},
        },
        "messages": _references([TaskMessage]),
    }


def _references(shapes: Iterable[type[BaseModel]]) -> dict[str, Any]:
    return {_name(shape): {"$ref": f"#/components/messages/{_name(shape)}"} for shape in shapes}


def _operation(verb: str, channel: str, shapes: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """`send` and `receive` are the platform's."""
    place = f"#/channels/{channel}"
    return {
        "action": verb,
        "channel": {"$ref": place},
        "messages": [{"$ref": f"{place}/messages/{_name(shape)}"} for shape in shapes],
    }


def _message(shape: type[BaseModel]) -> dict[str, Any]:
    return {
        "name": _name(shape),
        "summary": summary(shape),
        "payload": {"$ref": _REF.format(model=_name(shape))},
    }


def _name(shape: type[BaseModel]) -> str:
    return shape.__name__


def _schemas(
    from_server: Iterable[type[BaseModel]], from_client: Iterable[type[BaseModel]]
) -> dict[str, Any]:
    wanted = [
        *((shape, "serialization") for shape in dict.fromkeys(from_server)),
        *((shape, "validation") for shape in dict.fromkeys(from_client)),
    ]
    references, generated = models_json_schema(wanted, ref_template=_REF)  # type: ignore[arg-type]
    schemas = dict(generated["$defs"])
    for (shape, _mode), reference in references.items():
        name = reference["$ref"].rpartition("/")[2]
        schema = schemas[name]
        if issubclass(shape, Event):
            schema = _with_seq(schema)
        elif issubclass(shape, Action):
            schema = _as_frame(schema, shape)
        schemas[name] = schema
    return schemas


def _with_seq(schema: dict[str, Any]) -> dict[str, Any]:
    """The log gives the `seq`; what is in no log has none."""
    seq = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
    return {
        **schema,
        "properties": {"seq": seq, **schema["properties"]},
        "required": ["seq", *schema["properties"]],
    }


def _as_frame(schema: dict[str, Any], action: type[Action[Any]]) -> dict[str, Any]:
    """An action as a client sends it over its socket."""
    return {
        **schema,
        "properties": {"action": {"const": action.verb}, **schema["properties"]},
        "required": ["action", *schema.get("required", [])],
    }
