"""load → run → save: one attempt of one run, and what the database knows of it."""

from __future__ import annotations

import asyncio
import datetime
import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import redis
from django.conf import settings
from django.db import OperationalError, connection

from agents.config import AgentConfig
from agents.selectors import PinnedVersion, agent_name, agent_version
from agents.validation import asked_models, bounded
from conversations.actions import ConversationAppendAction
from conversations.selectors import Turn, session_history
from core import aio
from core.actions.base import Settlement
from core.actions.bus import execute
from core.actions.registry import works
from core.actions.running import Stopped, StopReason, until_stopped
from core.errors import NoobleError
from core.events.groups import session_name
from core.events.log import append, running_answer_sync
from core.ledger import close_call, forget_call, open_call
from core.models import Task
from core.selectors import task_origin, tenant_limits
from execution.actions import ExecuteAgentAction
from execution.calls import Choice
from execution.context import RunContext
from execution.credentials import provider_maker
from execution.errors import described
from execution.events import (
    AgentExecutionCompleted,
    AgentExecutionFailed,
    RunCompleted,
    RunEvent,
    RunFailed,
)
from execution.limits import estimated_tokens, message_tokens
from execution.messages import ChatMessage, ModelRequest, TextDelta, Usage
from execution.providers.base import ProviderError
from execution.runner import request_of, run_agent
from execution.streaming import AnswerStream, RunIdentity

logger = logging.getLogger(__name__)


MOST_ATTEMPTS = 3  # of a run that its agent lets begin again after a fault
TRIES, RETRY_SECONDS = 30, 1.0  # of writing a row while the database is away


@dataclass(slots=True)
class Outcome:
    """What a run came to. `last_seq` is the last seq of the session's log that the run has seen."""

    parts: list[str] = field(default_factory=list)
    finish_reason: str = "stop"
    usage: Usage | None = None
    error: NoobleError | None = None
    again: str = ""  # why another attempt is to follow
    last_seq: int = 0
    calls: int = 0  # of providers
    asked: tuple[str, str] = ("", "")  # provider and model of the last call

    @property
    def text(self) -> str:
        return "".join(self.parts)


def _abandoned(action: ExecuteAgentAction, task: Task) -> Settlement:
    """What a dead worker has left: the answer as far as the session heard it. Its calls stay `unknown`."""
    outcome = Outcome(finish_reason="cancelled", usage=Usage(0, 0, accuracy="unknown"))
    try:
        running, seq = running_answer_sync(session_name(task.tenant_id, action.session_id))
    except redis.RedisError:
        running, seq = None, None
    outcome.last_seq = seq or 0
    if running is not None and (running.task_id, running.attempt) == (task.pk, task.attempt):
        outcome.parts.append(running.text)
    return Settlement(
        Task.Status.FAILED,
        result=_result(outcome),
        write=functools.partial(_write_abandoned, action, task, outcome),
    )


def _write_abandoned(action: ExecuteAgentAction, task: Task, outcome: Outcome, status: str) -> None:
    if status != Task.Status.QUEUED and outcome.text:
        outcome.finish_reason = "cancelled" if status == Task.Status.CANCELLED else "failed"
        _append_answer(action, task, outcome)


@works(ExecuteAgentAction, abandoned=_abandoned)
def execute_agent(action: ExecuteAgentAction, task: Task) -> Settlement:
    """One attempt of one run. While the model speaks, no database connection is held."""
    version = agent_version(action.version_id)
    turns = session_history(action.session_row_id, task_origin(task))
    run = RunIdentity(
        task_id=task.pk,
        global_task_id=task.global_task_id,
        tenant_id=task.tenant_id,
        session_id=action.session_id,
        agent_id=action.agent_id,
        version=version.number,
        attempt=task.attempt,
        floor=max(1, *(turn.seq for turn in turns)),
    )
    request = request_of(_context(action, version, turns))
    choices = _choices(version.config, task.tenant_id)
    calls = _Calls(action, task, Outcome())
    # The first call's row, while we have a connection; the call follows in a moment.
    calls.write(1, version.config.provider, version.config.model)
    connection.close()
    outcome = aio.run(_stream(run, request, choices, calls))
    outcome.usage = outcome.usage or _estimated(request, outcome)
    if outcome.error is not None and _may_restart(version.config, task, outcome):
        outcome.again = "provider_fault"
    failed = Task.Status.FAILED if outcome.error else Task.Status.COMPLETED
    return Settlement(
        status=Task.Status.QUEUED if outcome.again else failed,
        # A run that is to go on elsewhere may find itself cancelled: then this is its result.
        result=None if outcome.error else _result(outcome),
        error=outcome.error.as_dict() if outcome.error else None,
        write=functools.partial(_write, action, task, outcome),
        announce=functools.partial(_announce, run, outcome),
        reason=outcome.again,
    )


def _may_restart(config: AgentConfig, task: Task, outcome: Outcome) -> bool:
    """Before the first token the calls themselves have been tried again."""
    return config.restart_after_fault and bool(outcome.text) and task.attempt < MOST_ATTEMPTS


def _context(action: ExecuteAgentAction, version: PinnedVersion, turns: list[Turn]) -> RunContext:
    # A tier's bounds hold from the next run on, whatever the version says.
    config = bounded(version.config, tenant_limits(version.tenant_id))
    return RunContext(
        agent_name=agent_name(action.agent_id),
        config=config,
        history=tuple(ChatMessage(turn.role, turn.text) for turn in turns),  # type: ignore[arg-type]
        session_id=action.session_id,
        end_user=action.end_user,
        now=datetime.datetime.now(datetime.UTC),
        timeout=min(config.timeout_seconds or settings.TASK_TIMEOUT_SECONDS, settings.TASK_TIMEOUT_SECONDS),
    )


def _choices(config: AgentConfig, tenant_id: str) -> list[Choice]:
    """The agent's model, and the one that answers in its place."""
    return [
        Choice(provider, model, provider_maker(tenant_id, provider))
        for _place, provider, model in asked_models(config)
    ]


class _Calls:
    """The ledger of one attempt's provider calls, and what they came to."""

    def __init__(self, action: ExecuteAgentAction, task: Task, outcome: Outcome) -> None:
        self._action = action
        self._task = task
        self.outcome = outcome

    def write(self, call: int, provider: str, model: str) -> None:
        """The row of a call that follows."""
        open_call(
            self._task,
            call,
            agent_id=self._action.agent_id,
            session_id=self._action.session_id,
            end_user=self._action.end_user,
            provider=provider,
            model=model,
        )

    async def begin(self, provider: str, model: str) -> None:
        """The first call has its row already; others wait for theirs, as long as the run may take."""
        call = self.outcome.calls + 1
        if call > 1:
            await asyncio.to_thread(self._write_patiently, call, provider, model)
        # Not before: a run that was cancelled meanwhile has not made this call.
        self.outcome.calls, self.outcome.asked = call, (provider, model)

    async def end(self, error: ProviderError) -> None:
        """It gave no answer: what it took stays unknown."""

    def _write_patiently(self, call: int, provider: str, model: str) -> None:
        for tries_left in reversed(range(TRIES)):
            try:
                self.write(call, provider, model)
                return
            except OperationalError:
                if not tries_left:
                    raise
                time.sleep(RETRY_SECONDS)
            finally:
                connection.close()


async def _stream(
    run: RunIdentity, request: ModelRequest, choices: Sequence[Choice], calls: _Calls
) -> Outcome:
    """Run the agent and stream it to its session. A cancel ends it with the text so far."""
    outcome = calls.outcome
    async with AnswerStream(run) as stream:
        try:
            # A word to stop reaches the model's answer only, not what is sent of it.
            await until_stopped(run.task_id, _answer(request, choices, stream, calls))
        except Stopped as stopped:
            if stopped.reason == StopReason.CANCELLED:
                outcome.finish_reason = "cancelled"
            else:
                outcome.again = stopped.reason
        except ProviderError as error:
            logger.warning("task %s: %s: %s", run.task_id, type(error).__name__, error.detail)
            outcome.finish_reason, outcome.error = "failed", described(error)
        else:
            stream.complete()
    outcome.last_seq = stream.last_seq
    return outcome


async def _answer(
    request: ModelRequest, choices: Sequence[Choice], stream: AnswerStream, calls: _Calls
) -> None:
    """The model's answer into the stream and the outcome, while it comes. Raises ProviderError."""
    outcome = calls.outcome
    async for event in run_agent(request, choices, calls):
        if isinstance(event, TextDelta):
            outcome.parts.append(event.text)
            stream.add(event.text)
        else:
            outcome.finish_reason, outcome.usage = event.reason, event.usage


def _estimated(request: ModelRequest, outcome: Outcome) -> Usage:
    """For a call whose end the provider never reported: what we sent and saw, or nothing known."""
    if not outcome.calls:
        return Usage(0, 0)
    if outcome.error is not None and not outcome.text:
        return Usage(0, 0, accuracy="unknown")
    prompt = sum(message_tokens(message) for message in request.messages)
    return Usage(prompt, estimated_tokens(outcome.text), accuracy="estimated")


def _result(outcome: Outcome) -> dict[str, Any]:
    assert outcome.usage is not None
    return {
        "text": outcome.text,
        "usage": asdict(outcome.usage),
        "tool_calls": [],
        "citations": [],
        "finish_reason": outcome.finish_reason,
    }


def _write(action: ExecuteAgentAction, task: Task, outcome: Outcome, status: str) -> None:
    """The answer and what it cost, inside the settling transaction."""
    assert outcome.usage is not None
    if status == Task.Status.CANCELLED:
        outcome.finish_reason = "cancelled"
    if status != Task.Status.QUEUED and (outcome.text or status == Task.Status.COMPLETED):
        _append_answer(action, task, outcome)
    if not outcome.calls:
        forget_call(task, 1)
        return
    provider, model = outcome.asked
    taken = asdict(outcome.usage)
    close_call(task, outcome.calls, provider=provider, model=model, **taken)


def _append_answer(action: ExecuteAgentAction, task: Task, outcome: Outcome) -> None:
    execute(
        ConversationAppendAction(
            session_row_id=action.session_row_id,
            task_id=task.pk,
            role="assistant",
            text=outcome.text,
            finish_reason=outcome.finish_reason,
            seq=outcome.last_seq,
        )
    )


def _announce(run: RunIdentity, outcome: Outcome, status: str) -> None:
    """Tell the session how the run ended; the row has been settled."""
    event: RunEvent
    if outcome.error is not None and status != Task.Status.CANCELLED:
        failed = RunFailed(error=str(outcome.error), error_type=outcome.error.type)
        event = AgentExecutionFailed(**run.envelope(), data=failed)
    else:
        event = AgentExecutionCompleted(**run.envelope(), data=RunCompleted(**_result(outcome)))
    aio.run(append(event, run.attempt, floor=outcome.last_seq))
