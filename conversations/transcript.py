"""A session to take away: everything that was said, as JSON, Markdown or plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from django.utils import translation
from django.utils.translation import gettext as _

from conversations.actions import SessionResource
from conversations.models import Message, Session
from conversations.selectors import session_messages, session_resource

Row = dict[str, Any]
SLICE = 200  # messages in memory at once

# Role, in the reader's language.
_NAMES = {str(value): label for value, label in Message.Role.choices}


@dataclass(frozen=True, slots=True)
class Form:
    """How a transcript is written: before the messages, each of them, after them."""

    ending: str
    content_type: str
    head: Callable[[SessionResource], str]
    message: Callable[[Row, bool], str]  # the message, and whether it is the first
    foot: str


def _json_head(session: SessionResource) -> str:
    return f'{{"session":{session.model_dump_json()},"messages":['


def _json_message(row: Row, first: bool) -> str:
    return ("" if first else ",") + orjson.dumps(row, option=orjson.OPT_UTC_Z).decode()


def _facts(session: SessionResource) -> Iterator[tuple[str, str]]:
    yield _("Session"), session.session_id
    yield _("Agent"), str(session.agent_id)
    if user_id := session.user_info["user_id"]:
        yield _("End user"), user_id
    yield _("Begun"), _moment(session.created_at)


def _markdown_head(session: SessionResource) -> str:
    facts = "".join(f"- {name}: `{_line(text)}`\n" for name, text in _facts(session))
    return f"# {_escaped(_line(session.title)) or _('Conversation')}\n\n{facts}"


def _markdown_message(row: Row, first: bool) -> str:
    """As a quotation: what somebody wrote cannot pass for the transcript's own words."""
    said = "".join(f"> {line}\n" for line in row["text"].splitlines()) or ">\n"
    return f"\n**{_who(row)}**\n\n{said}"


def _text_head(session: SessionResource) -> str:
    facts = "".join(f"{name}: {_line(text)}\n" for name, text in _facts(session))
    return f"{_line(session.title) or _('Conversation')}\n{facts}"


def _text_message(row: Row, first: bool) -> str:
    said = "".join(f"    {line}\n" for line in row["text"].splitlines())
    return f"\n{_who(row)}\n{said}"


def _who(row: Row) -> str:
    reason = row["finish_reason"]
    ending = f" ({reason})" if reason not in ("", "stop") else ""
    return f"{str(_NAMES[row['role']]).capitalize()}, {_moment(row['created_at'])}{ending}"


def _moment(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in r"\`*_{}[]<>()#+-.!|~" else char for char in text)


FORMS = {
    "json": Form("json", "application/json", _json_head, _json_message, "]}\n"),
    "markdown": Form("md", "text/markdown; charset=utf-8", _markdown_head, _markdown_message, ""),
    "text": Form("txt", "text/plain; charset=utf-8", _text_head, _text_message, ""),
}


class Transcript:
    """One session in one of the FORMS and in a language, written piece by piece. In its tenant's scope."""

    def __init__(self, session: Session, form: str, language: str) -> None:
        self._session = session
        self._form = FORMS[form]
        self._language = language
        self._after: int | None = None  # the last message that is written; 0 before the first

    @property
    def headers(self) -> dict[str, str]:
        """Of a file to keep."""
        name = f"session-{self._session.key}.{self._form.ending}"
        return {
            "Content-Type": self._form.content_type,
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
        }

    def next(self) -> bytes | None:
        """The next piece; None after the last. Raises SessionNotFound when it was deleted meanwhile."""
        with translation.override(self._language):
            if self._after is None:
                self._after = 0
                return self._form.head(session_resource(self._session)).encode()
            if self._after < 0:
                return None
            rows = session_messages(self._session.key, 0, self._after, SLICE)
            said = [self._form.message(row, self._after == 0 and at == 0) for at, row in enumerate(rows)]
            self._after = rows[-1]["id"] if len(rows) == SLICE else -1
            return "".join([*said, self._form.foot if self._after < 0 else ""]).encode()

    def pieces(self) -> Iterator[bytes]:
        while (piece := self.next()) is not None:
            yield piece
