"""From a run's tokens to its clients' frames."""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass
from typing import Any

import redis

from core.events.base import Event
from core.events.log import Growth, append_patiently
from execution.events import (
    AgentExecutionStarted,
    AgentResponseToken,
    ResponseToken,
    RunEvent,
    RunStarted,
)

logger = logging.getLogger(__name__)

FRAME_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Whose events these are; `floor` is a seq that their session may have had."""

    task_id: uuid.UUID
    global_task_id: uuid.UUID
    tenant_id: str
    session_id: str
    agent_id: uuid.UUID
    version: int
    attempt: int
    floor: int

    def envelope(self) -> dict[str, Any]:
        """The fields that every event of the run shares."""
        return {
            "task_id": self.task_id,
            "global_task_id": self.global_task_id,
            "tenant_id": self.tenant_id,
            "session_id": self.session_id,
        }


class AnswerStream:
    """Publishes one run's answer while it grows.

    The first token goes at once; then at most one frame every 20 ms, and never two publishes in
    flight: under load the frames grow by themselves and nothing queues up.

    It keeps the whole answer: a Valkey that has lost its data gets it once more.
    """

    def __init__(self, run: RunIdentity) -> None:
        self._run = run
        self._pieces: list[str] = []
        self._sent = 0  # of the pieces
        self._offset = 0  # in code points, as clients count
        self._bytes = 0
        self._wake = asyncio.Event()
        self._closed = False
        self._complete = False
        self.last_seq = run.floor
        self._pump = asyncio.create_task(self._publish_frames())

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send what is left and wait until it is sent."""
        if kind is not None:
            self._pump.cancel()
            return
        self._closed = True
        self._wake.set()
        await self._pump

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self._wake.set()

    def complete(self) -> None:
        """The answer ends here: its last frame says so."""
        self._complete = True

    async def _publish_frames(self) -> None:
        started = RunStarted(
            agent_id=self._run.agent_id, version=self._run.version, attempt=self._run.attempt
        )
        await self._publish(AgentExecutionStarted(**self._run.envelope(), data=started), "")
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            last = self._closed
            begun = loop.time()
            if self._sent < len(self._pieces) or (last and self._complete):
                token = "".join(self._pieces[self._sent :])
                self._sent = len(self._pieces)
                data = ResponseToken(token=token, offset=self._offset, is_final=last and self._complete)
                await self._publish(AgentResponseToken(**self._run.envelope(), data=data), token)
                self._offset += len(token)
            if last:
                return
            if not self._closed:
                # Tokens that come meanwhile make the next frame.
                await asyncio.sleep(begun + FRAME_SECONDS - loop.time())

    async def _publish(self, event: RunEvent, token: str) -> None:
        """In order and without a hole, while Valkey is away for a moment."""
        piece, sent = token.encode(), self._sent

        def whole() -> tuple[Event, bytes]:
            """The answer from its beginning, as one token: Valkey has lost what it had of it."""
            text = "".join(self._pieces[:sent])
            data = event.data.model_copy(update={"token": text, "offset": 0})
            return event.model_copy(update={"data": data}), text.encode()

        growth = Growth(self._bytes, piece, whole)
        try:
            seq = await append_patiently(event, self._run.attempt, floor=self.last_seq, growth=growth)
        except (redis.RedisError, OSError) as error:
            logger.warning("task %s: a frame was lost: %s", self._run.task_id, error)
        else:
            self.last_seq = seq or self.last_seq
        self._bytes += len(piece)
