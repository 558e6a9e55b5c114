"""What the OpenAPI schema says of every operation beside its own: ids, errors, headers, who may call it."""

from __future__ import annotations

from typing import Any

from drf_spectacular.contrib.pydantic import PydanticExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from pydantic import BaseModel
from rest_framework.request import Request

from core.ids import SESSION_PATTERN, SLUG_PATTERN

_UUID = {"type": "string", "format": "uuid"}
# Of addresses: parameters mean the same wherever they stand.
_IN_PATHS = {
    "agent_id": _UUID,
    "batch_id": _UUID,
    "budget_id": _UUID,
    "delivery_id": _UUID,
    "model": {"type": "string", "pattern": SLUG_PATTERN},  # an agent's id is spelled like a slug
    "name": {"type": "string", "pattern": SLUG_PATTERN},
    "number": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    "secret_id": {"type": "string", "pattern": "^[0-9a-f]{12}$"},
    "session_id": {"type": "string", "pattern": SESSION_PATTERN},
    "task_id": _UUID,
    "template_id": _UUID,
    "webhook_id": _UUID,
}
_STRING = {"type": "string"}
# One event of a stream: OpenAPI 3.1 has no word for the whole.
EVENT = {"type": "object", "properties": {"id": _STRING, "data": _STRING}, "required": ["data"]}
_ERROR = {
    "type": "object",
    "description": "Every error, everywhere. A program decides by `type`: docs/errors.md lists them all.",
    "properties": {
        "success": {"const": False},
        "error": {
            "type": "object",
            "properties": {
                "type": _STRING,
                "message": {"type": "string", "description": "For people, by Accept-Language."},
                "details": {"type": "object", "additionalProperties": True},
            },
            "required": ["type", "message", "details"],
        },
        "request_id": _STRING,
    },
    "required": ["success", "error", "request_id"],
}
# Below `/v1/`: what the official clients read.
_COMPATIBLE_ERROR = {
    "description": "The one shape, and what clients of the OpenAI API read beside it.",
    "allOf": [{"$ref": "#/components/schemas/Error"}],
    "properties": {
        "error": {
            "type": "object",
            "properties": {"param": {"type": ["string", "null"]}, "code": _STRING},
            "required": ["param", "code"],
        }
    },
}
_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": {
        "description": "The caller's own if it gave a harmless one; it is in every line of the log.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "RateLimit": {
        "description": "What is left of each limit that was counted (draft-ietf-httpapi-ratelimit-headers).",
        "schema": _STRING,
    },
    "RateLimit-Policy": {"description": "Each limit that was counted.", "schema": _STRING},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}},
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "ETag": {
        "description": "The agent's present state, for `If-Match`.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[^"]+"$'},
    },
}


class ShapeExtension(PydanticExtension):
    """A request's shape is what we take, an answer's what we give."""

    priority = 1

    def map_serializer(self, auto_schema: Any, direction: str) -> Any:
        shape: type[BaseModel] = self.target
        schema = shape.model_json_schema(
            ref_template="#/components/schemas/{model}",
            mode="validation" if direction == "request" else "serialization",
        )
        for name, part in schema.pop("$defs", {}).items():
            component = ResolvedComponent(name=name, type=ResolvedComponent.SCHEMA, object=name, schema=part)
            auto_schema.registry.register_on_missing(component)
        return schema


class OperationSchema(AutoSchema):
    """What a view's `extend_schema` says, and what holds for every operation."""

    def get_operation(self, path: str, *place: Any) -> dict[str, Any] | None:
        operation: dict[str, Any] | None = super().get_operation(path, *place)
        if operation is not None:
            _describe(operation, path)
        return operation


def with_components(
    result: dict[str, Any], generator: SchemaGenerator, request: Request, public: bool
) -> Any:
    """drf-spectacular's hook: what all operations refer to."""
    components = result.setdefault("components", {})
    components.setdefault("schemas", {}).update(Error=_ERROR, CompatibleError=_COMPATIBLE_ERROR)
    components["headers"] = _HEADERS
    return result


def _describe(operation: dict[str, Any], path: str) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["schema"] = _IN_PATHS[parameter["name"]]
    answers = {**_errors(path, bool(operation.get("security"))), **operation.get("responses", {})}
    for status, answer in answers.items():
        names = ["X-Request-ID", "RateLimit", "RateLimit-Policy"]
        if status == "401":
            names.append("WWW-Authenticate")
        if status in ("429", "503"):
            names.append("Retry-After")
        if _is_an_agent(answer):
            names.append("ETag")
        answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    operation["responses"] = answers


def _errors(path: str, needs_token: bool) -> dict[str, dict[str, Any]]:
    """What is refused (4XX), and what asks to come again (429, 503)."""
    shape = "CompatibleError" if path.startswith("/v1/") else "Error"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    said = {"4XX": "The request is to blame.", "429": "Too much at the moment.", "503": "Not at the moment."}
    if needs_token:
        said["401"] = "Nobody is known by this token, or there is none."
    return {status: {"description": text, "content": content} for status, text in said.items()}


def _is_an_agent(answer: dict[str, Any]) -> bool:
    shown = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return bool(shown.get("$ref") == "#/components/schemas/AgentResource")
