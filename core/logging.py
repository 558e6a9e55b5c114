"""One event, one line: control characters of logged text cannot forge a second one."""

from __future__ import annotations

import logging
import re

_control = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


class LineFormatter(logging.Formatter):
    """`time level logger message`; a traceback follows escaped, on the same line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def format(self, record: logging.LogRecord) -> str:
        return _control.sub(_escape, super().format(record))


class UnexpectedAnswers(logging.Filter):
    """Django logs every answer from 400 on; what a caller did wrong, or waits for, is no news."""

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, "status_code", 500) == 500
