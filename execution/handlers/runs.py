"""load → run → save: one attempt of one run, and what the database knows of it."""

from __future__ import annotations

import datetime
import functools
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import redis
from django.conf import settings
from django.db import connection, transaction

from agents.config import AgentConfig
from agents.errors import AgentNotFound
from agents.selectors import PinnedVersion, agent_is_suspended, agent_name, agent_version
from agents.validation import asked_models, bounded
from agents.variables import PROMPT_VARIABLES, placeholders
from conversations.actions import ConversationAppendAction
from conversations.selectors import session_context, session_history
from core import aio
from core.actions.base import Settlement
from core.actions.bus import execute
from core.actions.registry import works
from core.actions.running import Stopped, StopReason, until_stopped
from core.errors import NoobleError, Suspended
from core.events.groups import log_name
from core.events.log import append, running_answer_sync
from core.ledger import keep_calls
from core.models import Task
from core.selectors import task_origin, tenant_limits
from execution.accounting import AttemptCalls
from execution.actions import ExecuteAgentAction, RunOptions
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
from execution.seen import SeenCalls
from execution.streaming import AnswerStream, RunIdentity

logger = logging.getLogger(__name__)


MOST_ATTEMPTS = 3  # of a run that its agent lets begin again after a fault


@dataclass(slots=True)
class Outcome:
    """What a run came to. `last_seq` is the last seq of the session's log that the run has seen."""

    parts: list[str] = field(default_factory=list)
    finish_reason: str = "stop"
    usage: Usage | None = None
    error: NoobleError | None = None
    again: str = ""  # why another attempt is to follow
    last_seq: int = 0

    @property
    def text(self) -> str:
        return "".join(self.parts)


def _abandoned(action: ExecuteAgentAction, task: Task) -> Settlement:
    """What a dead worker has left: the answer as far as the session heard it. Its calls stay `unknown`.

    What they hold in budgets is counted, after the taking over: that transaction is about many tasks.
    """
    outcome = Outcome(finish_reason="cancelled", usage=Usage(0, 0, accuracy="unknown"))
    try:
        running, seq = running_answer_sync(log_name(task.tenant_id, action.session_id, task.pk))
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
    transaction.on_commit(functools.partial(keep_calls, task), robust=True)
    if status != Task.Status.QUEUED and outcome.text:
        outcome.finish_reason = "cancelled" if status == Task.Status.CANCELLED else "failed"
        _append_answer(action, task, outcome)


@works(ExecuteAgentAction, abandoned=_abandoned)
def execute_agent(action: ExecuteAgentAction, task: Task) -> Settlement:
    """One attempt of one run. While the model speaks, no database connection is held."""
    if agent_is_suspended(action.agent_id):
        raise Suspended()
    version = agent_version(action.version_id)
    if version.tenant_id != task.tenant_id:
        raise AgentNotFound()  # versions are kept for everybody: no wall stands before them
    said, floor = _said(action, task)
    run = RunIdentity(
        task_id=task.pk,
        global_task_id=task.global_task_id,
        tenant_id=task.tenant_id,
        session_id=action.session_id,
        agent_id=action.agent_id,
        version=version.number,
        attempt=task.attempt,
        floor=floor,
    )
    request = request_of(_context(action, version, said))
    choices = _choices(version.config, task.tenant_id)
    calls = AttemptCalls(
        task, request, agent_id=action.agent_id, session_id=action.session_id, end_user=action.end_user
    )
    # The first call's row, while we have a connection; the call follows in a moment.
    calls.write(version.config.provider, version.config.model)
    connection.close()
    outcome = aio.run(_stream(run, request, choices, calls))
    outcome.usage = outcome.usage or _estimated(request, outcome, calls)
    if outcome.error is not None and _may_restart(version.config, task, outcome):
        outcome.again = "provider_fault"
    failed = Task.Status.FAILED if outcome.error else Task.Status.COMPLETED
    return Settlement(
        status=Task.Status.QUEUED if outcome.again else failed,
        # A run that is to go on elsewhere may find itself cancelled: then this is its result.
        result=None if outcome.error else _result(outcome),
        error=outcome.error.as_dict() if outcome.error else None,
        write=functools.partial(_write, action, task, outcome, calls),
        announce=functools.partial(_announce, run, outcome),
        reason=outcome.again,
    )


def _may_restart(config: AgentConfig, task: Task, outcome: Outcome) -> bool:
    """Before the first token the calls themselves have been tried again."""
    return config.restart_after_fault and bool(outcome.text) and task.attempt < MOST_ATTEMPTS


def _said(action: ExecuteAgentAction, task: Task) -> tuple[tuple[ChatMessage, ...], int]:
    """What the model is to read, oldest first, and a seq that the run's log may have given already.

    Of a run without a session nobody has heard anything before its first attempt.
    """
    if action.messages is not None:
        given = tuple(ChatMessage(message.role, message.content) for message in action.messages)
        return given, min(task.attempt - 1, 1)
    assert action.session_row_id is not None
    turns = session_history(action.session_row_id, task_origin(task))
    said = tuple(ChatMessage(turn.role, turn.text) for turn in turns)  # type: ignore[arg-type]
    return said, max((1, *(turn.seq for turn in turns)))


def _context(action: ExecuteAgentAction, version: PinnedVersion, said: tuple[ChatMessage, ...]) -> RunContext:
    # A tier's bounds hold from the next run on, whatever the version says.
    config = bounded(version.config, tenant_limits(version.tenant_id))
    stop: tuple[str, ...] = ()
    if action.options is not None:
        config, stop = _asked_for(config, action.options), action.options.stop or ()
    return RunContext(
        agent_name=agent_name(action.agent_id),
        config=config,
        history=said,
        session_id=action.session_id,
        end_user=action.end_user,
        now=datetime.datetime.now(datetime.UTC),
        timeout=min(config.timeout_seconds or settings.TASK_TIMEOUT_SECONDS, settings.TASK_TIMEOUT_SECONDS),
        stop=stop,
        context_variables=_context_variables(action, config.instructions),
        is_given=action.messages is not None,
    )


def _context_variables(action: ExecuteAgentAction, instructions: str) -> dict[str, str]:
    """The session's; nobody asks for them where the instructions name none."""
    if action.session_row_id is None or not placeholders(instructions).difference(PROMPT_VARIABLES):
        return {}
    return session_context(action.session_row_id)


def _asked_for(config: AgentConfig, options: RunOptions) -> AgentConfig:
    """The configuration with what the caller asks of this run; a bound is only ever lowered."""
    changed: dict[str, Any] = {}
    if options.temperature is not None:
        changed["temperature"] = options.temperature
    if options.max_output_tokens is not None:
        bound = config.max_output_tokens
        changed["max_output_tokens"] = min(bound or options.max_output_tokens, options.max_output_tokens)
    return config.model_copy(update=changed)


def _choices(config: AgentConfig, tenant_id: str) -> list[Choice]:
    """The agent's model, and the one that answers in its place."""
    return [
        Choice(provider, model, provider_maker(tenant_id, provider))
        for _place, provider, model in asked_models(config)
    ]


async def _stream(
    run: RunIdentity, request: ModelRequest, choices: Sequence[Choice], calls: AttemptCalls
) -> Outcome:
    """Run the agent and stream it to its session. A cancel ends it with the text so far."""
    outcome = Outcome()
    async with AnswerStream(run) as stream:
        try:
            # A word to stop reaches the model's answer only, not what is sent of it.
            await until_stopped(run.task_id, _answer(request, choices, stream, calls, outcome))
        except Stopped as stopped:
            if stopped.reason == StopReason.CANCELLED:
                outcome.finish_reason = "cancelled"
            else:
                outcome.again = stopped.reason
        except ProviderError as error:
            logger.warning("task %s: %s: %s", run.task_id, type(error).__name__, error.detail)
            logger.debug("task %s: the provider said: %s", run.task_id, error.said)
            outcome.finish_reason, outcome.error = "failed", described(error)
        except NoobleError as error:
            outcome.finish_reason, outcome.error = "failed", error
        else:
            stream.complete()
    outcome.last_seq = stream.last_seq
    return outcome


async def _answer(
    request: ModelRequest,
    choices: Sequence[Choice],
    stream: AnswerStream,
    calls: AttemptCalls,
    outcome: Outcome,
) -> None:
    """The model's answer into the stream and the outcome, while it comes.

    Raises ProviderError, BudgetExhausted and NoPrice.
    """
    seen = SeenCalls(calls)
    problem = "stopped"
    try:
        async for event in run_agent(request, choices, seen):
            if isinstance(event, TextDelta):
                outcome.parts.append(event.text)
                stream.add(event.text)
                if len(outcome.parts) == 1:
                    seen.speaks()
            else:
                outcome.finish_reason, outcome.usage = event.reason, event.usage
                if event.reason == "length" and calls.is_cut_short:
                    outcome.finish_reason = "budget"
        problem = ""
    except ProviderError as error:
        problem = type(error).__name__
        raise
    finally:
        seen.over(problem)


def _estimated(request: ModelRequest, outcome: Outcome, calls: AttemptCalls) -> Usage:
    """For a call whose end the provider never reported: what we sent and saw, or nothing known."""
    if not calls.made:
        return Usage(0, 0)
    if not calls.is_open or (outcome.error is not None and not outcome.text):
        return Usage(0, 0, accuracy="unknown")
    prompt = sum(message_tokens(message) for message in request.messages)
    return calls.bounded(Usage(prompt, estimated_tokens(outcome.text), accuracy="estimated"))


def _result(outcome: Outcome) -> dict[str, Any]:
    assert outcome.usage is not None
    return {
        "text": outcome.text,
        "usage": asdict(outcome.usage),
        "tool_calls": [],
        "citations": [],
        "finish_reason": outcome.finish_reason,
    }


def _write(
    action: ExecuteAgentAction, task: Task, outcome: Outcome, calls: AttemptCalls, status: str
) -> None:
    """The answer and what it cost, inside the settling transaction."""
    assert outcome.usage is not None
    if status == Task.Status.CANCELLED:
        outcome.finish_reason = "cancelled"
    if status != Task.Status.QUEUED and (outcome.text or status == Task.Status.COMPLETED):
        _append_answer(action, task, outcome)
    calls.settle(outcome.usage)


def _append_answer(action: ExecuteAgentAction, task: Task, outcome: Outcome) -> None:
    """To the session's messages; without a session the answer stands in the task's row."""
    if action.session_row_id is None:
        return
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
