"""What a run says, as completions and chunks of one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any
from weakref import WeakSet

import orjson
from django.db import close_old_connections

from core.actions.bus import execute
from core.actions.tasks import TaskCancelAction
from core.api.late import Answer
from core.away import SERVICE_AWAY
from core.errors import CannotCancel
from core.tenancy import tenant_scope
from orchestrator.completions.errors import failed, failure
from orchestrator.errors import AnswerRestarted
from orchestrator.execution_actions import StartedExecution
from orchestrator.following import Follower, Told, ends

logger = logging.getLogger(__name__)

SILENCE = b":\n\n"  # a comment: it keeps proxies from closing the connection
DONE = b"data: [DONE]\n\n"
BY = "client"  # who cancels a run whose client has gone, as the task's row says it

CANCEL_TRIES, CANCEL_SECONDS = 10, 1.0  # while the database is away

_NOTHING = {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "accuracy": "unknown"}

# Of this process. When it stops, their clients lose them.
_open: WeakSet[Completion] = WeakSet()
# Cancels of runs that nobody waits for: nobody waits for them either.
_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="client-gone")


class Unsayable(Exception):
    """A new attempt says something else than what the client has read."""


class Completion:
    """One run on behalf of one client, who is told its answer as it comes, or whole.

    The run is the client's: when it goes away before the end, the run is cancelled.
    """

    def __init__(
        self, run: StartedExecution, tenant_id: str, model: str, request_id: str, *, wants_usage: bool = False
    ) -> None:
        self._run = run
        self._tenant_id = tenant_id
        self._request_id = request_id
        self._wants_usage = wants_usage
        # In the language of the request, which only its thread knows.
        restarted = AnswerRestarted()
        self._restarted = failure(restarted.type, str(restarted), request_id)
        self._ended = False
        _open.add(self)
        self._base = {
            "id": f"chatcmpl-{run.task_id}",
            "created": int(run.created_at.timestamp()),
            "model": model,
        }

    # --- whole -------------------------------------------------------------------------------------

    async def whole(self) -> Answer:
        """The answer once the run has ended."""
        async with aclosing(self._told()) as events:
            async for told in events:
                if told is None:
                    continue
                data = told.event["data"]
                match told.event["event"]:
                    case "agent_execution_failed" | "task_failed":
                        return failed(data["error_type"], data["error"], self._request_id)
                    case "agent_execution_completed" | "task_completed":
                        return self._completion(data)
                    case "task_status_update" if self._ended:
                        return self._completion({"text": "", "finish_reason": "cancelled"})
        raise asyncio.CancelledError  # the word was swallowed on the way: see `Follower`

    def _completion(self, data: dict[str, Any]) -> Answer:
        message = {"role": "assistant", "content": data["text"], "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _reason(data),
        }
        usage = _usage(data.get("usage", _NOTHING))
        return Answer(200, {**self._base, "object": "chat.completion", "choices": [choice], "usage": usage})

    # --- as it comes -------------------------------------------------------------------------------

    async def chunks(self) -> AsyncIterator[bytes]:
        """Server-Sent Events up to the end mark; a failed run ends with an error in its place."""
        said = Said()
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})
        async with aclosing(self._told()) as events:
            async for told in events:
                if told is None:
                    yield SILENCE
                    continue
                data = told.event["data"]
                match told.event["event"]:
                    case "agent_execution_failed" | "task_failed":
                        yield _event(failure(data["error_type"], data["error"], self._request_id))
                        return
                    case "agent_execution_completed" | "task_completed":
                        pass
                    case "task_status_update" if self._ended:
                        data = {"text": "", "finish_reason": "cancelled"}
                try:
                    piece = said.hear(told.event["event"], data)
                except Unsayable:
                    yield _event(self._restarted)
                    return
                if piece:
                    yield self._chunk({"content": piece})
                if self._ended:
                    for frame in self._end(data):
                        yield frame
                    return

    def _end(self, data: dict[str, Any]) -> list[bytes]:
        frames = [self._chunk({}, _reason(data))]
        if self._wants_usage:
            usage = _usage(data.get("usage", _NOTHING))
            frames.append(_event({**self._base, "object": _CHUNK, "choices": [], "usage": usage}))
        return [*frames, DONE]

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._base, "object": _CHUNK, "choices": [choice]}
        return _event({**chunk, "usage": None} if self._wants_usage else chunk)

    # --- the run -----------------------------------------------------------------------------------

    async def _told(self) -> AsyncGenerator[Told | None, None]:
        """The run's events up to the one that ends it."""
        follower = Follower(self._tenant_id, "", self._run.task_id)
        async with aclosing(follower.events()) as events:
            async for told in events:
                self._ended = self._ended or (told is not None and ends(told.event))
                yield told
                if self._ended:
                    return

    def close(self) -> None:
        """Nobody listens any more: a run that goes on is cancelled. Does not wait."""
        if not self._ended:
            self._ended = True
            _threads.submit(self._cancel)

    def _cancel(self) -> None:
        for _ in range(CANCEL_TRIES):
            try:
                with tenant_scope(self._tenant_id), suppress(CannotCancel):  # it may have ended
                    execute(TaskCancelAction(task_id=self._run.task_id, by=BY))
                return
            except SERVICE_AWAY as error:
                logger.warning("task %s goes on without its client: %s", self._run.task_id, error)
            except Exception:
                logger.exception("task %s goes on without its client", self._run.task_id)
                return
            finally:
                close_old_connections()
            time.sleep(CANCEL_SECONDS)


def close_all() -> None:
    """The process stops: its clients lose their answers."""
    for completion in list(_open):
        completion.close()


_CHUNK = "chat.completion.chunk"


class Said:
    """What a client has been told of an answer: it cannot be taken back.

    Another attempt begins the answer anew. As long as it says the same, there is nothing to tell.
    """

    def __init__(self) -> None:
        self._told = ""
        self._text = ""  # of the present attempt

    def hear(self, event: str, data: dict[str, Any]) -> str:
        """What is new to the client in an event of the run. Raises Unsayable."""
        match event:
            case "agent_response_token":
                token: str = data["token"]
                if data["offset"] == len(self._text) == len(self._told):
                    self._text = self._told = self._told + token
                    return token
                self._text = self._text[: data["offset"]] + token
            case "agent_execution_started":
                self._text = ""
            case "snapshot":
                running = data["running"]
                self._text = running["text"] if running is not None else ""
            case "agent_execution_completed" | "task_completed":
                self._text = data["text"]
                if not self._text.startswith(self._told):
                    # One that is cancelled between two attempts has less to show than it has said.
                    if data["finish_reason"] == "cancelled":
                        return ""
                    raise Unsayable
            case _:
                return ""
        return self._news()

    def _news(self) -> str:
        known = len(self._told)
        if self._text.startswith(self._told):
            self._told = self._text
            return self._text[known:]
        if self._told.startswith(self._text):
            return ""
        raise Unsayable


def _reason(data: dict[str, Any]) -> str:
    """Why the answer ends; that a budget has bounded it is no word of that API."""
    reason: str = data["finish_reason"]
    return "length" if reason == "budget" else reason


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """`accuracy`: whether the provider told the numbers (`exact`), we counted, or nobody knows."""
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
        "accuracy": usage.get("accuracy", "unknown"),
    }


def _event(body: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(body)
