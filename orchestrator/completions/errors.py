"""Errors as clients of the OpenAI-compatible API read them: the one shape, with `param` and `code`."""

from __future__ import annotations

from typing import Any

from agents.errors import AgentNotFound
from core.api.errors import headers_of
from core.api.late import Answer
from core.errors import (
    AuthenticationRequired,
    BodyTooLarge,
    MalformedRequest,
    NoobleError,
    PermissionRefused,
    RateLimited,
    ValidationFailed,
)
from orchestrator.errors import ContextTooLong, ParameterRefused

# Which of our errors their clients know, the nearest class first: code and parameter.
_CODES: tuple[tuple[type[NoobleError], str, str | None], ...] = (
    (AuthenticationRequired, "invalid_api_key", None),
    (AgentNotFound, "model_not_found", "model"),
    (ContextTooLong, "context_length_exceeded", "messages"),
    (PermissionRefused, "permission_denied", None),
    (BodyTooLarge, "request_too_large", None),
    (MalformedRequest, "invalid_json", None),
    (ValidationFailed, "invalid_value", None),
    (RateLimited, "rate_limit_exceeded", None),
)
# How a run that failed is answered, by the type of its error; any other is the provider's doing.
_STATUSES = {
    "BudgetExhausted": 429,
    "DeadlineExceeded": 504,
    "InternalError": 500,
    "Poison": 500,
    "ProviderTimeout": 504,
    "Suspended": 403,
}
_QUOTA = "BudgetExhausted"


def shape(error: NoobleError, request_id: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers."""
    code, param = _named(error)
    told = {**error.as_dict(), "param": param, "code": code}
    return error.http_status, _body(told, request_id), headers_of(error)


def _named(error: NoobleError) -> tuple[str, str | None]:
    if isinstance(error, ParameterRefused):
        return error.code, error.param
    if error.type == _QUOTA:
        return "insufficient_quota", None
    for kind, code, param in _CODES:
        if isinstance(error, kind):
            return code, param
    return _code_of(error.http_status), None


def _code_of(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request"


def failure(error_type: str, message: str, request_id: str) -> dict[str, Any]:
    """The body for a run that gave no answer."""
    code = "insufficient_quota" if error_type == _QUOTA else _code_of(_STATUSES.get(error_type, 502))
    told: dict[str, Any] = {
        "type": error_type,
        "message": message,
        "details": {},
        "param": None,
        "code": code,
    }
    return _body(told, request_id)


def failed(error_type: str, message: str, request_id: str) -> Answer:
    """The answer for a run that gave none. It was tried again as long as that made sense."""
    status = _STATUSES.get(error_type, 502)
    return Answer(status, failure(error_type, message, request_id), {"X-Should-Retry": "false"})


def _body(error: dict[str, Any], request_id: str) -> dict[str, Any]:
    return {"success": False, "error": error, "request_id": request_id}
