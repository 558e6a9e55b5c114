"""One event, one line: JSON in production, `time level logger message key=value …` elsewhere.

Every logger of the process ends here, those of Celery, Daphne and Twisted too. A line names what it was
written for: request, task, tenant, trace. It has no prompts and no keys: of exceptions it keeps the
names, the places and the first line (PostgreSQL and pydantic quote values in the others), and what looks
like a secret is masked wherever it stands.
"""

from __future__ import annotations

import logging
import logging.config
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from json import dumps
from typing import Any, Literal

import orjson
import structlog

from core import tracing
from core.tenancy.scope import NoTenantScope, current_tenant_id

Format = Literal["json", "line"]

MASK = "***"
LONGEST = 300  # characters of an exception's own words
MOST_CAUSES = 10

# What splits lines, moves a terminal's cursor, or hides what follows. JSON escapes the lower ones itself.
_control = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Credentials by their shapes; what is before the part that opens something is kept.
_secret = re.compile(
    r"(Bearer +|nb[ks]_[a-z0-9]{12}_|whsec_|nooble\.(?:resume|bearer)\.|\bsk-|\bgsk_|\beyJ[\w-]+\.)"
    r"[^\s\"'\\,;)\]}]{4,}"
    r"|(://[^\s/:@\"]*:)[^\s/@\"]+(?=@)"
)
# Most lines have none of them.
_MARKS = ("Bearer", "nbk_", "nbs_", "whsec_", "nooble.", "sk-", "gsk_", "eyJ", "://")


def configure(config: dict[str, Any]) -> None:
    """Django's LOGGING_CONFIG: of the whole process, once."""
    logging.config.dictConfig(config)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    if threading.excepthook is threading.__excepthook__:  # and not a test's
        threading.excepthook = _of_a_thread


def _of_a_thread(ended: threading.ExceptHookArgs) -> None:
    """A thread that ends by an exception says so in one line, too."""
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        information = (ended.exc_type, ended.exc_value, ended.exc_traceback)
        logging.getLogger(__name__).critical("a thread has ended", exc_info=information)


class Formatter(structlog.stdlib.ProcessorFormatter):
    """`secrets` are texts that no line may hold, whatever they look like: the process's own keys."""

    def __init__(self, form: Format, secrets: Iterable[str] = ()) -> None:
        super().__init__(processors=[_described, _json if form == "json" else _line])
        known = sorted((re.escape(text) for text in secrets if text), key=len, reverse=True)
        self._known = re.compile("|".join(known)) if known else None

    def format(self, record: logging.LogRecord) -> str:
        try:
            text = super().format(record)
        except Exception as error:  # noqa: BLE001 - the line that cannot be written is an event, too
            broken = f"{record.msg!r:.300} cannot be written: {type(error).__name__}"
            text = super().format(logging.LogRecord(record.name, record.levelno, "", 0, broken, (), None))
        if self._known is not None:
            text = self._known.sub(MASK, text)
        for mark in _MARKS:
            if mark in text:
                return _secret.sub(rf"\g<1>\g<2>{MASK}", text)
        return text


class UnexpectedAnswers(logging.Filter):
    """Django logs every answer from 400 on; what a caller did wrong, or waits for, is no news."""

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, "status_code", 500) == 500


def _described(logger: object, method: str, event: Any) -> dict[str, Any]:
    """The line's fields, in order."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    exception = event.pop("exc_info", None)
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event.pop("event"),
    }
    fields.update(event)
    fields.update(_scope())
    if exception:
        fields["exception"] = _told(sys.exc_info()[1] if exception is True else _value(exception))
    return fields


def _scope() -> Iterator[tuple[str, str]]:
    """What the line was written for."""
    context = tracing.current()
    if context is not None:
        if context.request_id:
            yield "request_id", context.request_id
        if context.task_id:
            yield "task_id", context.task_id
    try:
        yield "tenant_id", current_tenant_id()
    except NoTenantScope:
        pass
    if context is not None:
        yield "trace_id", context.trace.trace_id


def _value(information: Any) -> BaseException | None:
    error: BaseException | None = information[1] if isinstance(information, tuple) else information
    return error


def _told(error: BaseException | None, most: int = MOST_CAUSES) -> str:
    """Where it came from, and its name with the first of its own words; its causes before it."""
    if error is None or not most:
        return ""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{_told(cause, most - 1)}\n" if cause is not None else ""
    inside = "".join(f"\n{_told(one, most - 1)}" for one in getattr(error, "exceptions", ()))
    frames = "".join(traceback.format_tb(error.__traceback__))
    words = str(error).partition("\n")[0][:LONGEST]
    head = "Traceback (most recent call last):\n" if frames else ""
    return f"{before}{head}{frames}{type(error).__qualname__}: {words}{inside}"


def _json(logger: object, method: str, fields: Any) -> str:
    try:
        text = orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError):
        text = dumps(fields, default=str)  # lone surrogates, endless numbers
    if text.isascii() and "\x7f" not in text:  # nearly always: the control characters below are escaped
        return text
    return _control.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _line(logger: object, method: str, fields: Any) -> str:
    words = [fields.pop("time"), fields.pop("level").upper(), fields.pop("logger"), str(fields.pop("event"))]
    exception = fields.pop("exception", None)
    words += [f"{name}={value}" for name, value in fields.items()]
    text = " ".join(words) + (f"\n{exception}" if exception else "")
    return _control.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)
