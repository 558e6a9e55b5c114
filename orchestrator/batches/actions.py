"""The verbs of batches."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from core.actions.base import Action, ActionError, Result
from core.rules import exactly_one
from execution.actions import RunMessage, RunOptions
from orchestrator.actions import TaskOutput, Text
from orchestrator.execution_actions import EndUser

MOST_ITEMS = 10_000

CustomId = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class BatchLine(BaseModel):
    """One item of a batch: `message`, one question, or `messages`, the oldest first.

    `custom_id` is the caller's own and comes back with the result. Without an `agent_id` the batch's answers.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra=exactly_one("message", "messages")
    )

    custom_id: CustomId | None = None
    agent_id: uuid.UUID | None = None
    message: Text | None = None
    messages: tuple[RunMessage, ...] | None = Field(None, min_length=1)
    options: RunOptions | None = None
    user_id: EndUser = ""
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Self:
        if (self.message is None) == (self.messages is None):
            raise PydanticCustomError("message", "either message or messages")
        return self


class BatchRequest(BaseModel):
    """The body of a batch in JSON; as JSONL it is the items alone, one a line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: uuid.UUID | None = None
    items: tuple[BatchLine, ...] = Field(min_length=1, max_length=MOST_ITEMS)


class BatchItemInput(BaseModel):
    """An item that has been read. `place` is what the request calls it: `items.0`, `lines.1`.

    `agent` is an id or a slug, or None for the batch's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: str
    custom_id: str
    agent: str | None
    messages: tuple[RunMessage, ...]
    options: RunOptions | None
    user_id: str
    metadata: dict[str, Any]


class BatchResponse(Result):
    """A batch: how far it is. `done` is `succeeded`, `failed` and `cancelled` together.

    `status`: `processing`, then `completed`, also when items have failed; or `cancelling`, then `cancelled`.
    """

    batch_id: uuid.UUID
    agent_id: uuid.UUID | None
    status: str
    total: int
    done: int
    succeeded: int
    failed: int
    cancelled: int
    created_at: datetime.datetime
    finished_at: datetime.datetime | None
    results_url: str


class AcceptedBatch(Result):
    batch_id: uuid.UUID


class BatchCreateAction(Action[AcceptedBatch]):
    """Run agents of the current tenant on many things, in the background."""

    verb = "batch.create"

    agent_id: uuid.UUID | None
    items: tuple[BatchItemInput, ...] = Field(min_length=1, max_length=MOST_ITEMS)


class BatchCancelAction(Action[None]):
    """Stop a batch: what runs is cancelled, what waits never runs. What has ended stays."""

    verb = "batch.cancel"

    batch_id: uuid.UUID
    by: str = "system"


class BatchFeedAction(Action[None]):
    """Write down which items of the current tenant's batches have ended, and begin the next ones.

    The callback of every item's run, and asked for whenever there may be something to do: done once too
    often, it changes nothing.
    """

    verb = "batch.feed"
    queue = ("orchestrator", "batch_feed")


class BatchResult(Result):
    """What became of one item; `position` counts from 1 in the order of the request.

    `task_id` is null for one that never began.
    """

    position: int
    custom_id: str | None
    status: str
    task_id: uuid.UUID | None
    output: TaskOutput | None
    error: ActionError | None
    metadata: dict[str, Any]
    finished_at: datetime.datetime


class BatchResults(BaseModel):
    """A page of results, in the order of the items; `next` is the cursor of the following one, or null."""

    items: list[BatchResult]
    next: str | None


class BatchList(BaseModel):
    """A page of batches, newest first; `next` is the cursor of the following one, or null."""

    items: list[BatchResponse]
    next: str | None
