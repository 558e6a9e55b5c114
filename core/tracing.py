"""Which trace the present work belongs to: W3C Trace Context, with or without somebody who records it.

A request, a socket's action and a worker's task enter their `context`; logs, rows, provider calls and
webhooks read it. Spans are made only where a recorder is set (`core.otel`); without one a span costs a
look at a variable. Nothing here knows Django.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Protocol

HEADER = "traceparent"
_header = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)

Kind = Literal["internal", "server", "client", "consumer"]


@dataclass(frozen=True, slots=True)
class Trace:
    """A place in a trace: what the header `traceparent` says. `begins`: no span of it has been made yet."""

    trace_id: str
    span_id: str
    sampled: bool = False
    begins: bool = False

    @classmethod
    def parse(cls, text: str) -> Trace | None:
        """The header's meaning; None for what is none. Of later versions, what we know of them."""
        match = _header.fullmatch(text) if text else None
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & 1))

    @classmethod
    def new(cls) -> Trace:
        """A trace that begins here; nobody has recorded anything of it."""
        digits = os.urandom(24).hex()
        return cls(digits[:32], digits[32:], begins=True)

    @property
    def header(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-0{self.sampled:d}"


@dataclass(frozen=True, slots=True)
class Context:
    """What the present work is done for. `request_id` is the request's that asked for it."""

    trace: Trace
    request_id: str = ""
    task_id: str = ""


_context: ContextVar[Context | None] = ContextVar("trace", default=None)


def current() -> Context | None:
    return _context.get()


def header() -> str:
    """`traceparent` for what leaves the process now; empty outside of any context."""
    context = _context.get()
    return context.trace.header if context is not None else ""


@contextmanager
def context(traceparent: str = "", *, request_id: str = "", task_id: str = "") -> Iterator[None]:
    """Everything inside goes on with the trace of the header, or begins one."""
    token = _context.set(Context(Trace.parse(traceparent) or Trace.new(), request_id, task_id))
    try:
        yield
    finally:
        _context.reset(token)


# --- Spans -----------------------------------------------------------------------------------------


class Recording(Protocol):
    """A span that has begun."""

    trace: Trace

    def set(self, **attributes: str | int | float | bool) -> None: ...

    def rename(self, name: str) -> None: ...

    def event(self, name: str) -> None:
        """Something that happened at this moment."""

    def end(self, error: str = "") -> None: ...


class Recorder(Protocol):
    """Who records spans. Times are the wall clock's seconds; none of it raises or waits."""

    def begin(
        self, name: str, kind: Kind, parent: Trace, attributes: dict[str, Any], at: float | None = None
    ) -> Recording: ...

    def whole(
        self, name: str, kind: Kind, parent: Trace, attributes: dict[str, Any], begun: float, ended: float
    ) -> None:
        """A span that is over already."""


recorder: Recorder | None = None  # set by the roof

_NOT_RECORDED: AbstractContextManager[Span | None] = nullcontext()


class Span:
    """A span of the present context. Until it ends, it is what new spans and headers name as their parent."""

    __slots__ = ("_outer", "_recording")

    def __init__(self, recording: Recording, outer: Context) -> None:
        self._recording = recording
        self._outer = outer
        _context.set(Context(recording.trace, outer.request_id, outer.task_id))

    def set(self, **attributes: str | int | float | bool) -> None:
        self._recording.set(**attributes)

    def rename(self, name: str) -> None:
        self._recording.rename(name)

    def event(self, name: str) -> None:
        self._recording.event(name)

    def end(self, error: str = "") -> None:
        """In the context in which it began. `error` is the name of what went wrong, if something has."""
        self._recording.end(error)
        _context.set(self._outer)


def begin(name: str, kind: Kind = "internal", **attributes: Any) -> Span | None:
    """A span that somebody ends; None where nobody records."""
    outer = _context.get()
    if recorder is None or outer is None:
        return None
    return Span(recorder.begin(name, kind, outer.trace, attributes), outer)


def span(name: str, kind: Kind = "internal", **attributes: Any) -> AbstractContextManager[Span | None]:
    """A span around what is inside; what is raised there is its error, by name."""
    if recorder is None:
        return _NOT_RECORDED
    return _spanning(name, kind, attributes)


@contextmanager
def _spanning(name: str, kind: Kind, attributes: dict[str, Any]) -> Iterator[Span | None]:
    made = begin(name, kind, **attributes)
    error = ""
    try:
        yield made
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        if made is not None:
            made.end(error)


def record(name: str, begun: float, ended: float | None = None, **attributes: Any) -> None:
    """A span of the present context that is over by now; wall clock's seconds."""
    outer = _context.get()
    if recorder is not None and outer is not None:
        recorder.whole(name, "internal", outer.trace, attributes, begun, ended or time.time())
