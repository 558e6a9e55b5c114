"""docs/errors.md: every error that a caller may meet."""

from __future__ import annotations

from django.utils import translation

from core.errors import NoobleError
from execution.errors import RunError
from execution.providers.base import ProviderError
from nooble.reference.classes import own_subclasses
from nooble.reference.markdown import code, page, summary, table

_INTRODUCTION = """\
Every error has one shape, over HTTP and over a socket: `{type, message, details}`. Over HTTP it is wrapped:
`{"success": false, "error": {…}, "request_id": "…"}`. A program decides by `type`; the message is for
people, and comes in the language of `Accept-Language` (en, es). `details` maps a field to its reason where
the request is to blame."""

_PROVIDERS = """\
A run that gives no answer ends its task as `failed`. The name below is the `type` in the task's `error`,
and the `error_type` of `agent_execution_failed` and `task_failed`. The provider's own words stay in the
log. *Transient* ones may go away by themselves."""


def render() -> str:
    with translation.override("en"):
        errors = [error for error in own_subclasses(NoobleError) if error is not RunError]
        errors.sort(key=lambda error: error.http_status)
        rows = [
            (str(error.http_status), code(error.__name__), str(error.default_message), _remark(error))
            for error in errors
        ]
        failures = [
            (code(failure.__name__), summary(failure), failure.message, "yes" if failure.retryable else "no")
            for failure in own_subclasses(ProviderError)
        ]
    return page(
        "Errors",
        _INTRODUCTION,
        "## Requests",
        table(("status", "type", "message", "remark"), rows),
        "## Runs",
        _PROVIDERS,
        table(("type", "when", "message", "transient"), failures),
    )


def _remark(error: type[NoobleError]) -> str:
    return summary(error) if error.__doc__ != NoobleError.__doc__ else ""
