"""docs/events.md: every event that a client may hear."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from core.events.base import Event
from nooble.reference.classes import own_subclasses
from nooble.reference.markdown import code, page, summary, table
from orchestrator.sockets.keeper import GOING_AWAY, NO_SIGN_OF_LIFE, SLOW_READER
from orchestrator.sockets.socket import MALFORMED, NOT_ALLOWED, TOO_LARGE, TOO_MANY, TRY_AGAIN, UNKNOWN

_INTRODUCTION = """\
What a socket sends is an event or a control message. Every event has the same envelope:"""

_ENVELOPE = """\
`seq` is dense per session: 1, 2, 3, … in the order of the session's log. An event for the whole tenant is in
no log: its `seq` and `session_id` are null.

A turn's order: `agent_execution_started`, `agent_response_token`s, then one of
`agent_execution_completed` and `agent_execution_failed`, then one of `task_completed`, `task_failed` and
`task_status_update` with status `cancelled`. A task that is cancelled before it starts has only the last one.

A new attempt is told by `task_status_update` with status `queued` and by its own
`agent_execution_started`: what was streamed before counts no more. `agent_response_token` belongs at its
`offset`, in Unicode code points: an offset of 0 begins the answer anew, also where a lost log has made its
sender repeat the whole.

Control messages have no envelope and no `seq`: `connection_established`, `ping`, `pong`, `action_result`,
`error`, `snapshot`, `reconnect`. A `snapshot` stands for everything up to its `last_seq`: the messages so
far, each with its `task_status`, and the answer that is under way.

A broadcast has whatever name and data its sender gave it."""

_CLOSES = """\
A page whose Origin is `null`, malformed, or none that the session's agent allows gets HTTP 403 at the
handshake. Every other refusal is accepted, told in one `error`, and closed with its code:"""

_CODES = [
    (MALFORMED, "an id, `after` or subprotocol that is none, at the connect; later, a binary frame"),
    (NOT_ALLOWED, "`after` without its token, a token or key that does not do, another page, switched off"),
    (UNKNOWN, "no such tenant, or another's; a session that was deleted; an address that is no socket's"),
    (NO_SIGN_OF_LIFE, "neither a message nor a pong since a `ping`"),
    (SLOW_READER, "the client takes less than is sent to it: it may come back with `after`"),
    (TOO_LARGE, "a frame over 64 KiB"),
    (TOO_MANY, "too many sockets, connects, frames, or tokens that do not verify"),
    (1009, "a frame over 1 MiB, by the protocol: without an `error`"),
    (GOING_AWAY, "after a `reconnect`: this server goes away, another one is there"),
    (TRY_AGAIN, "the database or Valkey is away: come back in a while"),
]


def render() -> str:
    events = [event for event in own_subclasses(Event) if get_args(event.model_fields["event"].annotation)]
    envelope = [
        (code("seq"), "int | null"),
        *((code(name), _type(field)) for name, field in Event.model_fields.items() if name != "data"),
        (code("data"), "by event, below"),
    ]
    return page(
        "Events",
        _INTRODUCTION,
        table(("field", "type"), envelope),
        _ENVELOPE,
        _CLOSES,
        table(("code", "when"), ((str(number), when) for number, when in _CODES)),
        *(part for event in events for part in _section(event)),
    )


def _section(event: type[Event]) -> list[str]:
    name = get_args(event.model_fields["event"].annotation)[0]
    sender = event.model_fields["service"].default
    ends = f" It closes the {event.closes}." if event.closes else ""
    parts = [f"## `{name}` ({event.__name__})", f"{summary(event)}{ends} From `{sender}`."]
    shape = event.model_fields["data"].annotation
    if isinstance(shape, type) and issubclass(shape, BaseModel):
        rows = [(code(field), _type(info)) for field, info in shape.model_fields.items()]
        parts.append(table(("data", "type"), rows))
        if shape.__doc__:
            parts.append(summary(shape))
    return parts


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(code(value) for value in get_args(annotation))
    if get_origin(annotation) is None and isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("uuid.", "").replace("None", "null")
