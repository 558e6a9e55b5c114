"""The public verbs of the front door."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from core.actions.base import Action, Result, SessionId, TenantId
from core.queues.names import HIGH, Priority

Text = Annotated[str, StringConstraints(min_length=1, max_length=32_768)]
EventName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
AnyPriority = Annotated[
    Priority,
    BeforeValidator(Priority.parse, json_schema_input_type=str | int),
    WithJsonSchema(
        {
            "oneOf": [
                {"type": "string", "enum": ["low", "normal", "high"]},
                {"type": "integer", "minimum": 0, "maximum": 9},
            ],
            "description": "Orders the work inside the tenant; 9 is most urgent.",
        }
    ),
]


class UserInfo(BaseModel):
    """Who is speaking, as the front end tells it: display data, never a proof."""

    model_config = ConfigDict(frozen=True, extra="allow")

    user_id: Annotated[str, StringConstraints(max_length=255)] = ""


class ChatMessageBody(BaseModel):
    """The body of a chat message."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: uuid.UUID
    message: Text
    tenant_id: TenantId | None = None
    session_id: SessionId | None = None
    user_info: UserInfo = UserInfo()
    priority: AnyPriority = Priority.P5
    metadata: dict[str, Any] = Field(default_factory=dict)


class ChatMessageSent(Result):
    """Accepted. `estimated_time` in seconds; `resume_token` only when this message began the session."""

    task_id: uuid.UUID
    session_id: str
    status: str
    queue: str
    estimated_time: float
    websocket_url: str
    events_url: str
    resume_token: str | None = None


class ChatSendMessageAction(ChatMessageBody, Action[ChatMessageSent]):
    """Ask an agent. The agent's tenant pays."""

    verb = "chat.send_message"


class TaskBody(BaseModel):
    """The ids of a task, for the addresses that take them in a body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    tenant_id: TenantId | None = None


class TaskOutput(BaseModel):
    text: str
    tool_calls: list[dict[str, Any]]
    citations: list[dict[str, Any]]
    usage: dict[str, Any]


class TaskState(Result):
    """Where a task stands; `output` once there is one, `error` once it failed."""

    task_id: uuid.UUID
    session_id: str
    status: str
    queue: str
    attempt: int
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None
    output: TaskOutput | None
    error: dict[str, Any] | None


class ChatGetStatusAction(TaskBody, Action[TaskState]):
    """Ask how a task stands."""

    verb = "chat.get_status"


class CancelBody(TaskBody):
    """`only_if_queued`: leave a run alone that has begun."""

    user_id: Annotated[str, StringConstraints(max_length=255)] = ""
    only_if_queued: bool = False


class TaskCancelled(Result):
    """`status` is `cancelled`, or `cancelling` while a worker stops the run."""

    task_id: uuid.UUID
    status: str
    message: str


class ChatCancelTaskAction(CancelBody, Action[TaskCancelled]):
    """Stop a task, waiting or running; the text so far is kept."""

    verb = "chat.cancel_task"


class WebSocketSendAction(Action[None]):
    """Tell a session how one of its tasks ended: the callback of every run."""

    verb = "websocket.send_message"
    queue = ("orchestrator", "websocket_send")
    default_priority = HIGH

    session_id: SessionId
    task_id: uuid.UUID


class WebSocketBroadcastAction(Action[None]):
    """Tell the sessions named, or every open socket of the tenant when none is."""

    verb = "websocket.broadcast"
    queue = ("orchestrator", "websocket_broadcast")
    default_priority = HIGH

    event: EventName
    data: dict[str, Any]
    session_ids: tuple[SessionId, ...] | None = Field(None, min_length=1, max_length=1_000)
