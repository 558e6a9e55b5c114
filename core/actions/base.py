"""Contracts of the platform's verbs: actions, results, and what a worker's run comes to."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from core.ids import SESSION_PATTERN, SLUG_PATTERN
from core.queues.names import NORMAL, Priority

TenantId = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]
Slug = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]
ActionId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
SessionId = Annotated[str, StringConstraints(pattern=SESSION_PATTERN)]


class Result(BaseModel):
    """What a handler answers. A field that was never set is absent on the wire; a None is null."""

    model_config = ConfigDict(frozen=True)


R = TypeVar("R", bound=Result | None)


class Action(BaseModel, Generic[R]):
    """A verb and all that it needs; frozen, and closed to unknown fields.

    `verb` is its public name (`chat.send_message`). `queue` is `(domain, action)` of the
    queue it waits in when it is enqueued, or None when it is only ever executed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verb: ClassVar[str]
    queue: ClassVar[tuple[str, str] | None] = None
    default_priority: ClassVar[Priority] = NORMAL

    action_id: ActionId = Field(default_factory=lambda: uuid.uuid4().hex)

    def payload(self) -> dict[str, Any]:
        """The action as JSON-able data, from which it can be built again."""
        return self.model_dump(mode="json", exclude={"action_id"}, exclude_none=True)


class ActionError(BaseModel):
    """`type` is the name of a class of `core.errors` or of a package's own errors."""

    type: str
    message: str
    details: dict[str, Any]


class ActionResult(BaseModel):
    """The answer of every action endpoint. `execution_time` is in seconds."""

    action_id: str
    success: bool
    result: dict[str, Any] | None = None
    error: ActionError | None = None
    execution_time: float


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a worker's run ended, before it is written.

    `status` is completed, failed, or queued: this attempt ends without a result, another one follows.
    `write` runs inside the settling transaction, after its compare-and-set has won, and is told
    the status that came of it. `announce` runs after the commit, before the callback is published,
    if the task has ended. `reason` is why another attempt follows, as the session is told.
    """

    status: str
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    write: Callable[[str], None] = lambda status: None
    announce: Callable[[str], None] = lambda status: None
    reason: str = "handed_over"
