"""What clients hear of a run."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import ConfigDict

from core.events.base import Event, EventData, Service


class RunEvent(Event):
    service: Service = "agent-execution"


class RunStarted(EventData):
    agent_id: uuid.UUID
    version: int
    attempt: int


class AgentExecutionStarted(RunEvent):
    """A worker runs the agent. Attempt 2 means: forget what attempt 1 streamed."""

    event: Literal["agent_execution_started"] = "agent_execution_started"
    data: RunStarted


class RunProgress(EventData):
    """Beside `stage`, whatever else there is to say of it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    stage: str


class AgentExecutionProgress(RunEvent):
    """How far the run is, as a service told it over `/ws/task_updates`."""

    event: Literal["agent_execution_progress"] = "agent_execution_progress"
    data: RunProgress


class ResponseToken(EventData):
    """`offset`: Unicode code points of the answer before this piece."""

    token: str
    offset: int
    is_final: bool


class AgentResponseToken(RunEvent):
    """A piece of the answer; one frame may hold several tokens."""

    event: Literal["agent_response_token"] = "agent_response_token"
    data: ResponseToken


class RunCompleted(EventData):
    text: str
    usage: dict[str, Any]
    tool_calls: list[dict[str, Any]]
    citations: list[dict[str, Any]]
    finish_reason: str


class AgentExecutionCompleted(RunEvent):
    """The whole answer; the row is settled."""

    event: Literal["agent_execution_completed"] = "agent_execution_completed"
    closes = "run"
    data: RunCompleted


class RunFailed(EventData):
    error: str
    error_type: str


class AgentExecutionFailed(RunEvent):
    """The run gave no answer; the row is settled."""

    event: Literal["agent_execution_failed"] = "agent_execution_failed"
    closes = "run"
    data: RunFailed
