"""Every error that a caller may meet has a name here (or below a package's own `errors.py`).

The class name is the error's `type` on every wire: HTTP, WebSocket, task rows.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.utils.translation import gettext_lazy as _
from pydantic import ValidationError


class NoobleError(Exception):
    """An expected failure. `message` is translated and safe to show; `details` is JSON-able."""

    http_status: ClassVar[int] = 400
    default_message: ClassVar[Any] = _("The request failed.")

    def __init__(self, message: Any = None, *, details: dict[str, Any] | None = None) -> None:
        self.message = message if message is not None else self.default_message
        self.details = details or {}
        super().__init__(self.message)

    @property
    def type(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return str(self.message)

    def as_dict(self) -> dict[str, Any]:
        """The wire's `{type, message, details}`; the message in the active language."""
        return {"type": self.type, "message": str(self.message), "details": self.details}


class MalformedRequest(NoobleError):
    http_status = 400
    default_message = _("The body is not valid JSON.")


class AuthenticationRequired(NoobleError):
    http_status = 401
    default_message = _("A tenant API key is required.")


class PermissionRefused(NoobleError):
    http_status = 403
    default_message = _("You may not do this.")


class Suspended(PermissionRefused):
    """The tenant or the agent is switched off until somebody lifts it."""

    default_message = _("This service is suspended.")


class NotFound(NoobleError):
    http_status = 404
    default_message = _("Not found.")


class TenantNotFound(NotFound):
    default_message = _("Tenant not found.")


class TaskNotFound(NotFound):
    default_message = _("Task not found.")


class MethodNotAllowed(NoobleError):
    http_status = 405
    default_message = _("This method is not allowed here.")


class NotAcceptable(NoobleError):
    http_status = 406
    default_message = _("No acceptable representation.")


class Conflict(NoobleError):
    http_status = 409
    default_message = _("The request conflicts with the present state.")


class CannotCancel(Conflict):
    """The task is past the point where it can be cancelled."""

    def __init__(self, status: str) -> None:
        super().__init__(
            _("Cannot cancel a task in status: %(status)s") % {"status": status}, details={"status": status}
        )


class CannotRetry(Conflict):
    """Only a task that has ended can be done again."""

    def __init__(self, status: str) -> None:
        super().__init__(
            _("Cannot retry a task in status: %(status)s") % {"status": status}, details={"status": status}
        )


class BodyTooLarge(NoobleError):
    http_status = 413
    default_message = _("The body is too large.")


class UnsupportedMediaType(NoobleError):
    http_status = 415
    default_message = _("The body must be application/json.")


class ValidationFailed(NoobleError):
    """A body of the right syntax and the wrong content; `details` maps field to reason."""

    http_status = 422
    default_message = _("The request is not valid.")

    @classmethod
    def of(cls, error: ValidationError, prefix: str = "") -> ValidationFailed:
        """Pydantic's refusal: `details` maps each field, dotted behind `prefix`, to its reason."""
        details = {}
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            field = prefix + ".".join(str(part) for part in problem["loc"])
            details[field or "body"] = problem["msg"]
        return cls(details=details)


class RateLimited(NoobleError):
    """`retry_after` is in whole seconds; `details` tell it, too, for those who read no headers."""

    http_status = 429
    default_message = _("Too many requests.")

    def __init__(
        self, message: Any = None, *, details: dict[str, Any] | None = None, retry_after: int = 1
    ) -> None:
        super().__init__(message, details={**(details or {}), "retry_after": retry_after})
        self.retry_after = retry_after


class BudgetExhausted(RateLimited):
    """What is left of a budget in its period is too little; to be tried again when it ends.

    A total has no end: there it is a day.
    """

    default_message = _("The budget is used up.")


class NoPrice(Conflict):
    """A budget in US dollars cannot hold what costs nobody knows how much."""

    default_message = _("A budget in US dollars applies, and the model has no price.")


class DeadlineExceeded(NoobleError):
    http_status = 504
    default_message = _("The run took longer than it may.")


class Poison(NoobleError):
    """Every worker that ran the task died."""

    http_status = 500
    default_message = _("The task has brought down every worker that ran it.")


class ServiceUnavailable(NoobleError):
    """A part of the platform is away; `retry_after` is in seconds."""

    http_status = 503
    default_message = _("The service is temporarily unavailable.")
    retry_after: ClassVar[int] = 5


class InternalError(NoobleError):
    http_status = 500
    default_message = _("Something went wrong on our side.")
