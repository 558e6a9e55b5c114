"""One event, one line."""

from __future__ import annotations

import logging
import sys
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from core.logging import LineFormatter


def line(message: str, *args: object, exc_info: object = None, name: str = "nooble") -> str:
    record = logging.LogRecord(name, logging.WARNING, "file.py", 1, message, args, exc_info)  # type: ignore[arg-type]
    return LineFormatter().format(record)


def test_a_harmless_line_stays_as_it_is() -> None:
    assert line("task %s: ¿Qué tal? 🎈", 7).endswith(" WARNING nooble task 7: ¿Qué tal? 🎈")


def test_logged_text_cannot_forge_a_second_line() -> None:
    forged = line("user %s", "x\r\n2026-01-01T00:00:00+0000 ERROR root all is lost")
    assert forged.endswith("user x\\r\\n2026-01-01T00:00:00+0000 ERROR root all is lost")


@given(st.text(), st.text(max_size=20))
@example("\x1b[2J\x00\x7f\x85\x9b\u2028\u2029\n", "a\nb")
def test_no_control_character_reaches_the_terminal(text: str, name: str) -> None:
    formatted = line("%s", text, name=name)
    assert len(formatted.splitlines()) == 1
    assert not any(unicodedata.category(character) == "Cc" for character in formatted)


def test_a_traceback_follows_on_the_same_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        formatted = line("failed", exc_info=sys.exc_info())
    assert "\n" not in formatted
    assert "failed\\nTraceback" in formatted
    assert "ValueError: first\\nsecond" in formatted
