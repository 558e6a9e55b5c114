"""Every error answer has one shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import IntegrityError, InterfaceError, OperationalError
from django.http import Http404
from django.test import Client, RequestFactory
from django.utils import translation
from pydantic import BaseModel, ValidationError
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import TimeoutError as ValkeyTimeout
from rest_framework import exceptions as drf

from core import errors
from core.api.errors import bad_request, exception_handler, headers_of, named, not_found, server_error
from orchestrator.views.pages import FrontPageView


class Shape(BaseModel):
    number: int
    inner: dict[str, int] = {}


def refusal(**fields: Any) -> ValidationError:
    try:
        Shape(**fields)
    except ValidationError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (drf.UnsupportedMediaType("text/plain"), "UnsupportedMediaType", 415),
        (drf.MethodNotAllowed("PUT"), "MethodNotAllowed", 405),
        (drf.NotAuthenticated(), "AuthenticationRequired", 401),
        (drf.AuthenticationFailed(), "AuthenticationRequired", 401),
        (drf.PermissionDenied(), "PermissionRefused", 403),
        (drf.NotAcceptable(), "NotAcceptable", 406),
        (drf.Throttled(), "RateLimited", 429),
        (drf.ParseError(), "MalformedRequest", 400),
        (drf.NotFound(), "NotFound", 404),
        (Http404(), "NotFound", 404),
        (PermissionDenied(), "PermissionRefused", 403),
        (RequestDataTooBig(), "BodyTooLarge", 413),
        (OperationalError("10.0.0.7"), "ServiceUnavailable", 503),
        (ValkeyConnectionError("10.0.0.7"), "ServiceUnavailable", 503),
        (ValkeyTimeout("10.0.0.7"), "ServiceUnavailable", 503),
        (errors.CannotCancel("completed"), "CannotCancel", 409),
        (errors.TaskNotFound(), "TaskNotFound", 404),
        (refusal(number="x"), "ValidationFailed", 422),
        (IntegrityError("key (secret)=(plum)"), "InternalError", 500),
        (InterfaceError("plum"), "InternalError", 500),
        (ZeroDivisionError("plum"), "InternalError", 500),
        (KeyError("plum"), "InternalError", 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_error_is_named_and_answered_in_one_shape(error: Exception, kind: str, status: int) -> None:
    response = exception_handler(error, {"request": SimpleNamespace(request_id="r-1")})
    assert response.status_code == status
    assert set(response.data) == {"success", "error", "request_id"}
    assert (response.data["success"], response.data["request_id"]) == (False, "r-1")
    assert set(response.data["error"]) == {"type", "message", "details"}
    assert response.data["error"]["type"] == kind
    assert response.data["error"]["message"]
    assert "plum" not in str(response.data)
    assert "10.0.0.7" not in str(response.data)


def test_a_bug_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    named(ZeroDivisionError("plum"))
    assert "plum" in caplog.text


def test_a_named_error_stays_itself() -> None:
    error = errors.Conflict("Taken.", details={"slug": "demo"})
    assert named(error) is error
    assert error.as_dict() == {"type": "Conflict", "message": "Taken.", "details": {"slug": "demo"}}


def test_details_name_the_fields_and_never_repeat_what_was_sent() -> None:
    error = refusal(number="the secret is plum", inner={"a": "b"})
    assert set(errors.ValidationFailed.of(error).details) == {"number", "inner.a"}
    assert set(errors.ValidationFailed.of(error, prefix="config.").details) == {
        "config.number",
        "config.inner.a",
    }
    assert "plum" not in str(errors.ValidationFailed.of(error).details)


def test_headers_tell_what_to_do_next() -> None:
    assert headers_of(errors.AuthenticationRequired()) == {"WWW-Authenticate": "Bearer"}
    assert headers_of(errors.ServiceUnavailable()) == {"Retry-After": "5"}
    assert headers_of(errors.NotFound()) == {}


def test_messages_speak_the_callers_language_when_they_are_read() -> None:
    error = errors.CannotCancel("completed")
    with translation.override("en"):
        assert errors.NotFound().as_dict()["message"] == "Not found."
        assert error.details == {"status": "completed"}


@pytest.mark.parametrize(("page", "status"), [(not_found, 404), (bad_request, 400), (server_error, 500)])
def test_djangos_own_pages_have_the_same_shape(page: Any, status: int) -> None:
    response = page(RequestFactory().get("/nowhere"))
    assert response.status_code == status
    assert response["Content-Type"] == "application/json"


def test_every_named_error_has_a_status_and_a_message() -> None:
    def below(kind: type[errors.NoobleError]) -> set[type[errors.NoobleError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    for kind in below(errors.NoobleError):
        assert 400 <= kind.http_status < 600
        assert str(kind.default_message)


@pytest.mark.parametrize(
    ("error", "kind", "status", "headers"),
    [
        (OperationalError("10.0.0.7"), "ServiceUnavailable", 503, {"Retry-After": "5"}),
        (ValkeyTimeout("10.0.0.7"), "ServiceUnavailable", 503, {"Retry-After": "5"}),
        (ZeroDivisionError("plum"), "InternalError", 500, {}),
    ],
)
def test_what_breaks_a_page_is_named_too(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: str,
    status: int,
    headers: dict[str, str],
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(FrontPageView, "get", broken)
    client.raise_request_exception = False
    response = client.get("/")
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    assert headers.items() <= response.headers.items()
    assert "10.0.0.7" not in response.content.decode()
