"""load → run → save: the only file of the workshop that knows the database."""

from __future__ import annotations

import asyncio
import datetime
import functools
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from django.conf import settings
from django.db import connection

from agents.selectors import PinnedVersion, agent_name, agent_version
from conversations.actions import ConversationAppendAction
from conversations.selectors import Turn, session_history
from core import aio
from core.actions.base import Settlement
from core.actions.bus import execute
from core.actions.cancellation import until_cancelled
from core.actions.registry import works
from core.errors import NoobleError
from core.events.log import append
from core.models import Task, UsageRecord
from core.selectors import task_origin, tenant_limits
from execution.actions import ExecuteAgentAction
from execution.context import RunContext
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
from execution.providers.base import Provider, ProviderError, ProviderNotConfigured
from execution.providers.registry import Credentials, provider_for
from execution.runner import request_of, run_agent
from execution.streaming import AnswerStream, RunIdentity

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """What a run came to. `last_seq` is the last seq of the session's log that the run has seen."""

    parts: list[str] = field(default_factory=list)
    finish_reason: str = "stop"
    usage: Usage | None = None
    error: NoobleError | None = None
    last_seq: int = 0
    called: bool = False  # whether the provider was asked at all

    @property
    def text(self) -> str:
        return "".join(self.parts)


@works(ExecuteAgentAction)
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
    allowed = tenant_limits(task.tenant_id).uses_environment_keys
    connection.close()
    outcome = aio.run(_stream(run, request, version.config.provider, allowed))
    outcome.usage = outcome.usage or _estimated(request, outcome)
    return Settlement(
        status=Task.Status.FAILED if outcome.error else Task.Status.COMPLETED,
        result=None if outcome.error else _result(outcome),
        error=outcome.error.as_dict() if outcome.error else None,
        write=functools.partial(_write, action, task, version, outcome),
        announce=functools.partial(_announce, run, outcome),
    )


def _context(action: ExecuteAgentAction, version: PinnedVersion, turns: list[Turn]) -> RunContext:
    return RunContext(
        agent_name=agent_name(action.agent_id),
        config=version.config,
        history=tuple(ChatMessage(turn.role, turn.text) for turn in turns),  # type: ignore[arg-type]
        session_id=action.session_id,
        end_user=action.end_user,
        now=datetime.datetime.now(datetime.UTC),
        timeout=min(
            version.config.timeout_seconds or settings.TASK_TIMEOUT_SECONDS, settings.TASK_TIMEOUT_SECONDS
        ),
    )


def _provider(name: str, allowed: bool) -> Provider:
    base_url, key = settings.PROVIDERS[name]
    if name != "scripted" and not allowed:
        raise ProviderNotConfigured("the tier may not use the operator's keys")
    return provider_for(name, Credentials(base_url, key))


async def _stream(run: RunIdentity, request: ModelRequest, provider: str, allowed: bool) -> Outcome:
    """Run the agent and stream it to its session. A cancel ends it with the text so far."""
    outcome = Outcome()
    async with AnswerStream(run) as stream:
        try:
            # A cancel reaches the model's answer only, not what is sent of it.
            await until_cancelled(run.task_id, _answer(request, provider, allowed, stream, outcome))
        except asyncio.CancelledError:
            outcome.finish_reason = "cancelled"
        except ProviderError as error:
            logger.warning("task %s: %s: %s", run.task_id, type(error).__name__, error.detail)
            outcome.finish_reason, outcome.error = "failed", described(error)
        else:
            stream.complete()
    outcome.last_seq = stream.last_seq
    return outcome


async def _answer(
    request: ModelRequest, provider: str, allowed: bool, stream: AnswerStream, outcome: Outcome
) -> None:
    """The model's answer into the stream and the outcome, while it comes. Raises ProviderError."""
    model = _provider(provider, allowed)
    outcome.called = True
    async for event in run_agent(request, model):
        if isinstance(event, TextDelta):
            outcome.parts.append(event.text)
            stream.add(event.text)
        else:
            outcome.finish_reason, outcome.usage = event.reason, event.usage


def _estimated(request: ModelRequest, outcome: Outcome) -> Usage:
    """For a call whose end the provider never reported: what we sent and saw, or nothing known."""
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


def _write(
    action: ExecuteAgentAction, task: Task, version: PinnedVersion, outcome: Outcome, status: str
) -> None:
    """The answer and what it cost, inside the settling transaction."""
    assert outcome.usage is not None
    if status == Task.Status.CANCELLED:
        outcome.finish_reason = "cancelled"
    if outcome.text or status == Task.Status.COMPLETED:
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
    if not outcome.called:
        return
    UsageRecord.objects.create(
        tenant_id=task.tenant_id,
        task=task,
        agent_id=action.agent_id,
        session_id=action.session_id,
        end_user=action.end_user,
        provider=version.config.provider,
        model=version.config.model,
        **asdict(outcome.usage),
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
