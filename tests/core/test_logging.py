"""One event, one line; what it was written for; nothing that opens something."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from core import tracing
from core.logging import Format, Formatter, _of_a_thread
from core.tenancy import tenant_scope

FORMS: list[Format] = ["json", "line"]
OWN = "0123456789-of-the-process"
HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def record(message: object, *args: object, exc_info: Any = None, name: str = "nooble") -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "file.py", 1, message, args, exc_info)


def line(message: object, *args: object, form: Format = "line", **more: Any) -> str:
    return Formatter(form, [OWN]).format(record(message, *args, **more))


def fields(message: object, *args: object, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line(message, *args, form="json", **more))
    return found


def is_one_line(text: str) -> bool:
    return len(text.splitlines()) <= 1 and not any(unicodedata.category(each) == "Cc" for each in text)


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a logger of structlog's writes in production."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter("json"))
    logger = logging.getLogger("test.structured")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)


def test_a_harmless_line_stays_as_it_is() -> None:
    assert line("task %s: ¿Qué tal? 🎈", 7).endswith(" WARNING nooble task 7: ¿Qué tal? 🎈")


def test_logged_text_cannot_forge_a_second_line() -> None:
    forged = line("user %s", "x\r\n2026-01-01T00:00:00+0000 ERROR root all is lost")
    assert forged.endswith("user x\\r\\n2026-01-01T00:00:00+0000 ERROR root all is lost")


@pytest.mark.parametrize("form", FORMS)
@given(text=st.text(), name=st.text(max_size=20), key=st.text(max_size=20))
@example(text="\x1b[2J\x00\x7f\x85\x9b\u2028\u2029\n\ud800", name="a\nb", key="k\r\nk")
@example(text="\x7f", name="", key="\x7f")
@example(text="\x7f\ud800", name="", key="")
def test_no_control_character_reaches_the_terminal(form: Format, text: str, name: str, key: str) -> None:
    structured = logging.makeLogRecord(record("", name=name).__dict__)
    structured.msg = {"event": text, "more": {key: text}, "list": [text]}
    structured.__dict__.update(_logger=logging.getLogger(name), _name="warning")
    for each in (record("%s", text, name=name), structured):
        written = Formatter(form).format(each)
        assert is_one_line(written), written
        assert written.encode()
        if form == "json":
            found = json.loads(written)
            assert (found["event"], found["logger"]) == (text, name)


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_written_is_one_line_too(form: Format) -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError("no\nwords")

    for args in (("%d\n", "no number"), ("%s", Broken()), ("%s %s", "one")):
        written = line(*args, form=form)
        assert is_one_line(written)
        assert "cannot be written" in written


def test_a_traceback_follows_on_the_same_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        formatted, found = line("failed", exc_info=sys.exc_info()), fields("failed", exc_info=sys.exc_info())
    assert is_one_line(formatted)
    assert "failed\\nTraceback" in formatted
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("ValueError: first")


def test_an_exception_quotes_nothing_that_it_was_given() -> None:
    class Shape(BaseModel):
        key: int

    quoted = "the-" + "canary"  # and not in a line of code, which a traceback shows
    try:
        try:
            Shape(key=quoted)  # type: ignore[arg-type]
        except ValidationError as error:
            raise RuntimeError(f"null value in column\nDETAIL: Failing row contains ({quoted})") from error
    except RuntimeError:
        told = fields("failed", exc_info=sys.exc_info())["exception"]
    assert quoted not in told
    assert "1 validation error for Shape" in told
    assert "RuntimeError: null value in column" in told


def test_a_group_of_exceptions_is_told_whole() -> None:
    try:
        raise ExceptionGroup("two", [ValueError("one"), KeyError("other")])
    except ExceptionGroup:
        told = fields("failed", exc_info=sys.exc_info())["exception"]
    assert "ValueError: one" in told
    assert "KeyError: 'other'" in told


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "secret",
    [
        "Bearer the-canary",
        "Authorization: Bearer  the-canary",
        "nbk_0123456789ab_the-canary-the-canary",
        "nbs_0123456789ab_the-canary",
        "whsec_the-canary=",
        "nooble.v1, nooble.resume.the-canary~x",
        "nooble.bearer.nbk_0123456789ab_the-canary",
        "sk-proj-the-canary",
        "gsk_the-canary",
        "eyJhbGciOiJIUzI1NiJ9.the-canary.sum",
        "postgresql://user:the-canary@host/db",
        "redis://:the-canary@host:6379/0",
    ],
    ids=lambda text: text.split("the-")[0],
)
def test_what_opens_something_is_masked(form: Format, secret: str) -> None:
    written = line("a %s b", secret, form=form)
    assert "the-canary" not in written
    assert "***" in written
    assert " b" in written


def test_the_processs_own_secrets_are_masked_whatever_they_look_like() -> None:
    for form in FORMS:
        assert OWN not in line("a %s b", OWN, form=form)


@pytest.mark.parametrize("text", ["http://127.0.0.1:8000/v1/", "https://host/?a=b@c", "task-1: ask-me"])
def test_what_opens_nothing_stays(text: str) -> None:
    assert text in line("%s", text)


def test_a_line_names_what_it_was_written_for() -> None:
    assert not {"request_id", "task_id", "tenant_id", "trace_id"} & set(fields("nothing"))
    with tracing.context(HEADER, request_id="r-1", task_id="t-1"), tenant_scope("acme"):
        found, text = fields("something"), line("something")
    assert {name: found[name] for name in ("request_id", "task_id", "tenant_id", "trace_id")} == {
        "request_id": "r-1",
        "task_id": "t-1",
        "tenant_id": "acme",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    assert "request_id=r-1 task_id=t-1 tenant_id=acme" in text


def test_a_structured_event_is_fields(written: io.StringIO) -> None:
    log = structlog.get_logger("test.structured")
    with tenant_scope("acme"):
        log.info("task", status="completed", ms=1.5, tenant="x\r\ny")
    log.debug("not asked for")
    (text,) = written.getvalue().splitlines()
    found = json.loads(text)
    assert (found["event"], found["status"], found["ms"]) == ("task", "completed", 1.5)
    assert (found["level"], found["logger"], found["tenant_id"]) == ("info", "test.structured", "acme")
    assert list(found)[:4] == ["time", "level", "logger", "event"]


def test_odd_values_are_written_somehow(written: io.StringIO) -> None:
    log = structlog.get_logger("test.structured")
    log.info("odd", huge=10**40, bytes=b"\n", kind=ValueError("x"), keys={1: 2}, text="\ud800")
    (text,) = written.getvalue().splitlines()
    assert json.loads(text)["huge"] == 10**40


def test_a_thread_that_ends_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("broken")
    _of_a_thread(threading.ExceptHookArgs((ValueError, error, None, None)))
    _of_a_thread(threading.ExceptHookArgs((SystemExit, SystemExit(), None, None)))
    (told,) = caplog.records
    assert is_one_line(Formatter("json").format(told))
    assert "ValueError: broken" in Formatter("json").format(told)
