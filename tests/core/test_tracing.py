"""W3C Trace Context."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import aio, tracing
from core.tracing import Kind, Trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"


class Recording:
    def __init__(self, book: Book, name: str, parent: Trace) -> None:
        self.book, self.name, self.parent = book, name, parent
        self.trace = Trace(parent.trace_id, f"{len(book.spans) + 1:016x}", sampled=True)
        self.error: str | None = None
        self.attributes: dict[str, Any] = {}
        self.events: list[str] = []

    def set(self, **attributes: Any) -> None:
        self.attributes |= attributes

    def rename(self, name: str) -> None:
        self.name = name

    def event(self, name: str) -> None:
        self.events.append(name)

    def end(self, error: str = "") -> None:
        self.error = error


class Book:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.spans: list[Recording] = []

    def begin(
        self, name: str, kind: Kind, parent: Trace, attributes: dict[str, Any], at: float | None = None
    ) -> Recording:
        made = Recording(self, name, parent)
        made.set(**attributes)
        self.spans.append(made)
        return made

    def whole(
        self, name: str, kind: Kind, parent: Trace, attributes: dict[str, Any], begun: float, ended: float
    ) -> None:
        self.begin(name, kind, parent, attributes).set(begun=begun, ended=ended)


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Book:
    book = Book()
    monkeypatch.setattr(tracing, "recorder", book)
    return book


def test_a_header_is_read_and_written() -> None:
    trace = Trace.parse(HEADER)
    assert trace == Trace(TRACE, SPAN, sampled=True)
    assert trace.header == HEADER
    assert Trace.parse(f"00-{TRACE}-{SPAN}-00") == Trace(TRACE, SPAN)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
    ],
    ids=repr,
)
def test_what_is_no_header_is_none(text: str) -> None:
    assert Trace.parse(text) is None


def test_a_later_version_may_have_more() -> None:
    assert Trace.parse(f"01-{TRACE}-{SPAN}-09-more") == Trace(TRACE, SPAN, sampled=True)


@given(st.text())
def test_no_text_is_too_much(text: str) -> None:
    Trace.parse(text)
    with tracing.context(text):
        assert Trace.parse(tracing.header()) is not None


def test_a_trace_of_our_own_is_one() -> None:
    first, second = Trace.new(), Trace.new()
    assert first.trace_id != second.trace_id
    assert Trace.parse(first.header) == Trace(first.trace_id, first.span_id)


def test_a_context_holds_inside_only() -> None:
    assert (tracing.current(), tracing.header()) == (None, "")
    with tracing.context(HEADER, request_id="r"):
        assert tracing.header() == HEADER
        with tracing.context():
            assert TRACE not in tracing.header()
        assert tracing.header() == HEADER
    assert tracing.current() is None


def test_the_loop_of_a_process_goes_on_with_the_threads_context() -> None:
    async def header() -> str:
        return await asyncio.create_task(asyncio.sleep(0, tracing.header()))

    with tracing.context(HEADER):
        assert aio.run(header()) == HEADER


def test_without_a_recorder_there_are_no_spans() -> None:
    with tracing.context(HEADER), tracing.span("a") as span:
        assert span is None
        assert tracing.begin("b") is None
        tracing.record("c", 0.0)
        assert tracing.header() == HEADER


def test_a_span_is_the_parent_of_what_is_inside(book: Book) -> None:
    with tracing.context(HEADER, request_id="r", task_id="t"):
        with tracing.span("outer", "server", word="x"):
            inside = tracing.header()
            with tracing.span("inner") as inner:
                assert inner is not None
                inner.event("seen")
            assert tracing.header() == inside
            context = tracing.current()
            assert context is not None
            assert (context.request_id, context.task_id) == ("r", "t")
        assert tracing.header() == HEADER
    outer, inner_one = book.spans
    assert (outer.parent.span_id, inner_one.parent.span_id) == (SPAN, outer.trace.span_id)
    assert (outer.error, inner_one.error, inner_one.events) == ("", "", ["seen"])
    assert outer.attributes == {"word": "x"}


def test_an_error_ends_its_span_by_name(book: Book) -> None:
    with tracing.context(HEADER), pytest.raises(ValueError, match="no"), tracing.span("a"):
        raise ValueError("no")
    assert [span.error for span in book.spans] == ["ValueError"]


def test_outside_of_a_context_nothing_is_recorded(book: Book) -> None:
    with tracing.span("a") as span:
        tracing.record("b", 0.0)
    assert span is None
    assert book.spans == []


def test_what_is_over_is_recorded_whole(book: Book) -> None:
    with tracing.context(HEADER):
        tracing.record("queue", 1.0, 2.0)
    (span,) = book.spans
    assert (span.name, span.parent.span_id) == ("queue", SPAN)
    assert span.attributes == {"begun": 1.0, "ended": 2.0}
