"""The verbs of mass updates: one change for many agents, made by a worker."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from agents.config import AgentConfig
from agents.fields import Description, Kind, Note
from core.actions.base import Action, ActionError, Result
from core.queues.names import LOW
from core.rules import at_least_one, exactly_one

MOST_NAMED = 10_000  # agents that one mass update may name; `all` knows no bound

# An agent's id or its slug.
AgentName = Annotated[str, StringConstraints(min_length=1, max_length=40)]


class AgentBulkChanges(BaseModel):
    """What changes of every agent, with the meaning that it has for one: see `AgentUpdate`.

    `name` and `slug` are missing: they tell agents apart.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra=at_least_one("type", "description", "draft", "config"),
    )

    type: Kind | None = None
    description: Description | None = None
    draft: StrictBool | None = None
    config: dict[str, Any] | None = None
    publish: StrictBool = True

    @field_validator("config")
    @classmethod
    def _each_value_fits(cls, config: dict[str, Any] | None) -> dict[str, Any] | None:
        """Refused here is what would fit no agent. Raises pydantic's ValidationError."""
        AgentConfig(**{"provider": "scripted", "model": "echo", **(config or {})})
        return config

    @model_validator(mode="after")
    def _something_changes(self) -> AgentBulkChanges:
        if not self.config and (self.type, self.description, self.draft) == (None, None, None):
            raise PydanticCustomError("no_change", "nothing to change")
        return self


class AgentBulkUpdate(BaseModel):
    """The body of a mass update: the changes, for the agents named or for `all` that are there now.

    The `note` stays with each new version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=exactly_one("agents", "all"))

    changes: AgentBulkChanges
    agents: Annotated[tuple[AgentName, ...], Field(min_length=1, max_length=MOST_NAMED)] | None = None
    all: Literal[True] | None = None
    note: Note = ""

    @model_validator(mode="after")
    def _for_somebody(self) -> AgentBulkUpdate:
        if (self.agents is None) == (self.all is None):
            raise PydanticCustomError("agents", "either agents, or all")
        return self


class AskedBulkUpdate(Result):
    """A mass update that has been asked for; `total` is the number of agents."""

    task_id: uuid.UUID
    status: str
    queue: str
    total: int


class AgentAskBulkUpdateAction(AgentBulkUpdate, Action[AskedBulkUpdate]):
    """Have many agents changed by a worker, after the mass updates that the tenant has asked for before."""

    verb = "agent.ask_bulk_update"

    actor: str


class BulkCounts(Result):
    """How far a mass update is: `done` is `succeeded` and `failed` together."""

    total: int
    done: int
    succeeded: int
    failed: int


class AgentBulkUpdateAction(Action[BulkCounts]):
    """Change the agents that are lined up for the task, each in its own transaction."""

    verb = "agent.bulk_update"
    # Runs never wait behind it: their domain has workers of its own.
    queue = ("orchestrator", "agent_bulk_update")
    default_priority = LOW

    changes: AgentBulkChanges
    note: Note = ""
    actor: str


class BulkResult(BaseModel):
    """What became of one agent. `version` is its newest one then, null when it was refused; of an agent
    that is not found only what it was asked for by is known."""

    agent_id: uuid.UUID | None
    slug: str | None
    ok: bool
    version: int | None
    error: ActionError | None


class BulkState(BulkCounts):
    """Where a mass update stands, with a page of its results; `next` is the following one's cursor, or null.

    `status` is the task's: queued, pending, processing, cancelling, cancelled, completed or failed.
    It is `completed` also when some agents have failed.
    """

    task_id: uuid.UUID
    status: str
    results: list[BulkResult]
    next: str | None
