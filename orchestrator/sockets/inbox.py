"""From one client to the platform."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from orchestrator.sockets.link import Bucket, Link

logger = logging.getLogger(__name__)

MAX_FRAME = 64 * 1024  # bytes
# Bytes at once and bytes a second: 20 of the largest frames, then 10. A small frame weighs a KiB, for what
# it costs to answer.
BURST, RATE = 20 * MAX_FRAME, 10.0 * MAX_FRAME
LEAST = 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """What a client sent. Of a binary frame, and of one that is too large, nothing is kept."""

    text: str = ""
    is_binary: bool = False
    is_too_large: bool = False

    @classmethod
    def of(cls, text: str | None) -> Frame:
        if text is None:
            return cls(is_binary=True)
        if len(text) > MAX_FRAME or len(text.encode("utf-8", "surrogatepass")) > MAX_FRAME:
            return cls(is_too_large=True)
        return cls(text)


class Inbox:
    """The frames of one client: answered one at a time, in order, beside what is forwarded to it."""

    def __init__(
        self,
        link: Link,
        answer: Callable[[Frame], Awaitable[None]],
        burst: int = BURST,
        rate: float = RATE,
    ) -> None:
        self._link = link
        self._answer = answer
        self._bucket = Bucket(burst, rate)
        self._waiting: deque[Frame] = deque()
        self._task: asyncio.Task[None] | None = None

    def put(self, text: str | None) -> bool:
        """Take a frame in; None is a binary one. False: that was one too many."""
        if not self._bucket.take(max(LEAST, len(text or ""))):
            return False
        self._waiting.append(Frame.of(text))
        if self._task is None:
            self._task = asyncio.create_task(self._answer_all())
        return True

    def drop(self) -> None:
        """Forget what is not yet begun."""
        while self._waiting:
            self._waiting.popleft()
            self._link.took()

    async def finish(self) -> None:
        """What came in before its client left is still done."""
        if self._task is not None:
            await self._task

    async def _answer_all(self) -> None:
        try:
            while self._waiting:
                # A client that does not read the answers gets no more of them.
                await self._link.drained()
                if self._waiting:
                    frame = self._waiting.popleft()
                    try:
                        await self._answer(frame)
                    except Exception:
                        logger.exception("a frame was not answered")
                    finally:
                        self._link.took()
        finally:
            self._task = None
