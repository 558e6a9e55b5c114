"""Answers that outlive their view: those that come later, and those that somebody has to give up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

CLIENT_GONE = 499  # of an answer that nobody waited for: for logs and metrics, as nginx has it


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in JSON."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


class LateResponse(HttpResponse):
    """An answer in JSON that is still to come when its view returns.

    `work` is awaited on the event loop, with no thread held, and gives it. It is cancelled when the
    client goes away. `close` is called in any case and must not wait; it may be called twice.
    `arrived` is called when the answer is there, or nobody waits for it any more.
    """

    arrived: Callable[[], None] | None = None

    def __init__(
        self, work: Callable[[], Awaitable[Answer]], close: Callable[[], None] | None = None
    ) -> None:
        super().__init__(content_type="application/json")
        self._work = work
        _close_with(self, close)

    async def arrive(self) -> None:
        """Wait for the answer. Raises what the work raises."""
        self.status_code = CLIENT_GONE
        try:
            self._take(await self._work())
        finally:
            if self.arrived is not None:
                self.arrived()

    def _take(self, answer: Answer) -> None:
        self.status_code = answer.status
        self.content = orjson.dumps(answer.body)
        self["Content-Length"] = str(len(self.content))
        for name, value in answer.headers.items():
            self[name] = value


class EventStreamResponse(StreamingHttpResponse):
    """Server-Sent Events. `close` is called in any case and must not wait; it may be called twice."""

    def __init__(self, frames: AsyncIterator[bytes], close: Callable[[], None] | None = None) -> None:
        super().__init__(
            frames,
            content_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        _close_with(self, close)


def _close_with(response: HttpResponseBase, close: Callable[[], None] | None) -> None:
    if close is not None:
        closers: list[Callable[[], None]] = response._resource_closers  # type: ignore[attr-defined]
        closers.append(close)
