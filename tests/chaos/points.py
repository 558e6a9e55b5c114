"""Where a process can be made to kill itself, and which of the platform's guards can be taken out.

Only the launcher imports this, in the process that is altered. Whatever it names must exist: a point that
the code has lost stops the process at its start.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEFORE, AFTER = "before", "after"

# Name: module, what it calls there, and on which side of the call.
POINTS = {
    "post: before the commit": ("orchestrator.handlers.chat", "enqueue", AFTER),
    "post: committed": ("core.actions.bus", "publish_task", BEFORE),
    "post: published": ("core.actions.bus", "publish", AFTER),
    "post: marked": ("core.actions.bus", "publish_task", AFTER),
    "cancel: written": ("core.actions.cancellation", "hint", BEFORE),
    "claim: before": ("core.models.task", "Task.claim", BEFORE),
    "claim: after": ("core.models.task", "Task.claim", AFTER),
    "call: before": ("execution.accounting", "open_call", BEFORE),
    "call: written": ("execution.accounting", "open_call", AFTER),
    "append: before": ("core.events.log", "_Appender.append", BEFORE),
    "append: after": ("core.events.log", "_Appender.append", AFTER),
    "settle: before": ("core.actions.worker", "settle", BEFORE),
    "settle: inside": ("core.models.task", "Task.settle", AFTER),
    "settle: counted": ("execution.accounting", "close_call", AFTER),
    "settle: committed": ("execution.handlers.runs", "_announce", BEFORE),
    "settle: announced": ("execution.handlers.runs", "_announce", AFTER),
    "settle: callback published": ("core.actions.bus", "publish_task", AFTER),
    "ack: before": ("core.broker.keeper", "Keeper.settle", BEFORE),
    "callback: before": ("orchestrator.handlers.websocket", "ending_of", AFTER),
    "callback: between": ("orchestrator.handlers.websocket", "append_patiently", AFTER),
    "callback: told": ("core.actions.worker", "settle", BEFORE),
    "take-over: before its calls are kept": ("execution.handlers.runs", "keep_calls", BEFORE),
    "take-over: committed": ("core.actions.sweeper", "tell_again", BEFORE),
    "take-over: told": ("core.actions.sweeper", "tell_again", AFTER),
    "take-over: before publishing": ("core.actions.sweeper", "publish_task", BEFORE),
    "take-over: published": ("core.actions.sweeper", "publish_task", AFTER),
}

# The same on the way of a notice, from the outbox to a tenant's own system.
NOTICE_POINTS = {
    "relay: before": ("core.outbox", "relay", BEFORE),
    "relay: inside": ("core.outbox", "_publish", BEFORE),
    "relay: committed": ("core.actions.worker", "settle", BEFORE),
    "webhook: claimed": ("orchestrator.webhooks.postman", "_attempt", BEFORE),
    "webhook: sent": ("orchestrator.webhooks.postman", "_record", BEFORE),
    "webhook: recorded": ("orchestrator.webhooks.postman", "_record", AFTER),
}

# And of who feeds a batch.
BATCH_POINTS = {
    "feed: before": ("orchestrator.handlers.batches", "alone", BEFORE),
    "feed: inside": ("orchestrator.handlers.batches", "_begin_next", AFTER),
    "feed: committed": ("core.actions.bus", "publish_task", BEFORE),
    "feed: published": ("core.actions.bus", "publish_task", AFTER),
    "feed: before its end": ("core.actions.worker", "settle", BEFORE),
    "feed: after its end": ("core.actions.worker", "settle", AFTER),
}


def _place(module: str, path: str) -> tuple[Any, str]:
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    getattr(owner, name)  # it must exist
    return owner, name


def _wrap(module: str, path: str, wrap: Callable[[Any], Any]) -> None:
    """Puts `wrap(original)` in the original's place, whether it is a function or a method of any kind."""
    owner, name = _place(module, path)
    original = vars(owner)[name]
    if isinstance(original, classmethod | staticmethod):
        setattr(owner, name, type(original)(wrap(original.__func__)))
    else:
        setattr(owner, name, wrap(original))


# --- crashes ---------------------------------------------------------------------------------------------


def crash_at(name: str, permits: Path) -> None:
    """The process ends at that point as by `kill -9`, while there are permits."""
    module, path, side = {**POINTS, **NOTICE_POINTS, **BATCH_POINTS}[name]
    chosen = sorted(permits.iterdir())
    left = int(chosen[0].read_text()) if chosen else 0

    def maybe() -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            return
        for permit in sorted(permits.iterdir()):
            try:
                permit.unlink()
            except FileNotFoundError:
                continue  # another process was faster
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(original: Any) -> Any:
        if asyncio.iscoroutinefunction(original):

            @functools.wraps(original)
            async def crashing(*args: Any, **kwargs: Any) -> Any:
                if side == BEFORE:
                    maybe()
                result = await original(*args, **kwargs)
                if side == AFTER:
                    maybe()
                return result

            return crashing

        @functools.wraps(original)
        def crashing_at_once(*args: Any, **kwargs: Any) -> Any:
            if side == BEFORE:
                maybe()
            result = original(*args, **kwargs)
            if side == AFTER:
                maybe()
            return result

        return crashing_at_once

    _wrap(module, path, wrap)


# --- faults ----------------------------------------------------------------------------------------------


def be_deaf(share: float) -> None:
    """Pub/sub is at most once: sockets miss this share of their hints."""

    def wrap(original: Any) -> Any:
        async def session_event(self: Any, message: dict[str, Any]) -> None:
            if random.random() >= share:
                await original(self, message)

        return session_event

    _wrap("orchestrator.consumers", "SessionConsumer.session_event", wrap)


# --- guards ----------------------------------------------------------------------------------------------


def _without_the_rows_fence() -> None:
    """Whoever once had the task may settle it, whatever its attempt is by now."""

    def wrap(original: Any) -> Any:
        def move(task_id: Any, origins: Any, guard: dict[str, Any] | None = None, **changes: Any) -> bool:
            others = {name: value for name, value in (guard or {}).items() if name != "attempt"}
            return bool(original(task_id, origins, others, **changes))

        return move

    _wrap("core.models.task", "_move", wrap)
    _without_the_word_to_stop()


def _without_the_logs_fence() -> None:
    """The log takes events of any attempt."""
    log: Any = importlib.import_module("core.events.log")
    fence = "if attempt < heard or (attempt == heard and closes == 'attempt') then return 0 end"
    assert fence in log._script
    log._script = log._script.replace(fence, "")
    log._sha = hashlib.sha1(log._script.encode(), usedforsecurity=False).hexdigest()
    _without_the_word_to_stop()


def _without_the_word_to_stop() -> None:
    """A worker that stood still does not stop what has become another's: else only seconds are tried."""
    reasons: Any = importlib.import_module("core.actions.running").StopReason

    def wrap(original: Any) -> Any:
        def reason(*args: Any) -> Any:
            found = original(*args)
            return None if found == reasons.LOST else found

        return reason

    _wrap("core.actions.heartbeat", "_reason", wrap)


def _without_the_claims_compare_and_set() -> None:
    """Every message starts a run."""
    task: Any = importlib.import_module("core.models.task").Task

    def wrap(original: Any) -> Any:
        def claim(cls: Any, task_id: Any, *args: Any) -> Any:
            task.unscoped.filter(pk=task_id).update(status="queued")
            return original(cls, task_id, *args)

        return claim

    _wrap("core.models.task", "Task.claim", wrap)


def _without_settles_compare_and_set() -> None:
    """The end of a run is written whatever the row says."""

    def wrap(original: Any) -> Any:
        def settle(self: Any, status: str, *, result: Any = None, error: Any = None, **_: Any) -> str:
            type(self).unscoped.filter(pk=self.pk).update(status=status, result=result, error=error)
            return status

        return settle

    _wrap("core.models.task", "Task.settle", wrap)


def _without_gap_fill() -> None:
    """A socket forwards what it hears, whether or not something is missing before it."""

    def wrap(original: Any) -> Any:
        async def hear(self: Any, seq: int, text: str) -> None:
            if seq > self.cursor:
                self.cursor = seq
                await self._send(text)

        return hear

    _wrap("orchestrator.sockets.forwarding", "Forwarding.hear", wrap)


def _without_the_tail_check() -> None:
    """A socket never looks whether it has missed the last event."""
    _wrap("orchestrator.sockets.forwarding", "Forwarding.look", lambda _: lambda self, tail: None)


def _without_idempotency() -> None:
    """Every request is a new one."""
    _wrap("orchestrator.idempotency", "Once.answer", lambda _: lambda self, work: work())


def _without_the_ledgers_settling() -> None:
    """What a call took is never written."""
    _wrap("execution.accounting", "AttemptCalls.settle", lambda _: lambda self, usage: None)


GUARDS: dict[str, Callable[[], None]] = {
    "the row's fence": _without_the_rows_fence,
    "the log's fence": _without_the_logs_fence,
    "the claim's compare-and-set": _without_the_claims_compare_and_set,
    "settle's compare-and-set": _without_settles_compare_and_set,
    "gap fill": _without_gap_fill,
    "the tail check": _without_the_tail_check,
    "idempotency": _without_idempotency,
    "the ledger's settling": _without_the_ledgers_settling,
}
