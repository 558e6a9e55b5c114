"""The verbs of runs without a session, as the front door knows them."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from agents.fields import VersionNumber
from core.actions.base import Action, Result
from core.queues.names import HIGH, Priority
from core.rules import exactly_one
from execution.actions import RunMessage, RunOptions
from orchestrator.actions import AnyPriority, TaskOutput, Text

LONGEST_WAIT = 60.0  # seconds for which a caller may hold the connection

EndUser = Annotated[str, StringConstraints(max_length=255)]


class ExecutionFields(BaseModel):
    """What a run without a session is asked for.

    `version` null: the published one. `notify`: its end is told to the tenant's webhooks and dashboards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: uuid.UUID
    version: VersionNumber | None = None
    messages: tuple[RunMessage, ...] = Field(min_length=1)
    options: RunOptions | None = None
    user_id: EndUser = ""
    priority: AnyPriority = Priority.P5
    metadata: dict[str, Any] = Field(default_factory=dict)
    notify: StrictBool = False


class ExecutionBody(BaseModel):
    """The body of an execution: `input`, one question, or `messages`, the oldest first.

    `wait`: seconds for which the answer is held back until the run has ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=exactly_one("input", "messages"))

    agent_id: uuid.UUID
    version: VersionNumber | None = None
    input: Text | None = None
    messages: tuple[RunMessage, ...] | None = Field(None, min_length=1)
    options: RunOptions | None = None
    user_id: EndUser = ""
    priority: AnyPriority = Priority.P5
    metadata: dict[str, Any] = Field(default_factory=dict)
    notify: StrictBool = False
    wait: StrictFloat | None = Field(None, gt=0, le=LONGEST_WAIT, allow_inf_nan=False)

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise PydanticCustomError("input", "either input or messages")
        return self

    def action(self) -> ExecutionStartAction:
        """The run that is asked for."""
        messages = self.messages or (RunMessage(role="user", content=self.input or ""),)
        shared = {name: getattr(self, name) for name in ExecutionFields.model_fields if name != "messages"}
        return ExecutionStartAction(messages=messages, **shared)


class StartedExecution(Result):
    """A run that has been accepted."""

    task_id: uuid.UUID
    agent_id: uuid.UUID
    version: int
    status: str
    queue: str
    created_at: datetime.datetime


class ExecutionStarted(StartedExecution):
    """A run that has been accepted, and where its events are."""

    events_url: str


class ExecutionStartAction(ExecutionFields, Action[StartedExecution]):
    """Run an agent of the current tenant on the given messages, without a session."""

    verb = "execution.start"


class ExecutionTellAction(Action[None]):
    """Tell how a run without a session ended: in its log, to webhooks and to dashboards."""

    verb = "execution.tell"
    queue = ("orchestrator", "execution_tell")
    default_priority = HIGH

    task_id: uuid.UUID


class ExecutionResource(Result):
    """A run without a session: where it stands, `output` once there is one, `error` once it failed."""

    task_id: uuid.UUID
    agent_id: uuid.UUID
    version: int
    status: str
    priority: int
    attempt: int
    user_id: str
    metadata: dict[str, Any]
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None
    output: TaskOutput | None
    error: dict[str, Any] | None
    events_url: str


class ExecutionList(BaseModel):
    """A page of executions, newest first; `next` is the cursor of the following one, or null."""

    items: list[ExecutionResource]
    next: str | None
