"""The public verbs of the front door."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    WithJsonSchema,
)

from conversations.fields import UserInfo
from core.actions.base import Action, Result, SessionId, TenantId
from core.events.base import SERVICES
from core.queues.names import HIGH, Priority
from core.rules import WHOLE

Text = Annotated[str, StringConstraints(min_length=1, max_length=32_768)]


def _known_service(name: str) -> str:
    if name not in SERVICES:
        raise ValueError(f"one of {', '.join(SERVICES)}")
    return name


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
    only_if_queued: StrictBool = False


class TaskCancelled(Result):
    """`status` is `cancelled`, or `cancelling` while a worker stops the run."""

    task_id: uuid.UUID
    status: str
    message: str


class ChatCancelTaskAction(CancelBody, Action[TaskCancelled]):
    """Stop a task, waiting or running; the text so far is kept."""

    verb = "chat.cancel_task"


class WebSocketSendAction(Action[None]):
    """Tell a session how one of its tasks ended: the callback of every run.

    The end of a run without a session is told in the run's own log.
    """

    verb = "websocket.send_message"
    queue = ("orchestrator", "websocket_send")
    default_priority = HIGH

    session_id: SessionId | Literal[""]
    task_id: uuid.UUID


class WebSocketBroadcastAction(Action[None]):
    """Tell the sessions named, or every open socket of the tenant when none is."""

    verb = "websocket.broadcast"
    queue = ("orchestrator", "websocket_broadcast")
    default_priority = HIGH

    event: EventName
    data: dict[str, Any]
    session_ids: tuple[SessionId, ...] | None = Field(None, min_length=1, max_length=1_000)


ServiceName = Annotated[
    str, AfterValidator(_known_service), Field(json_schema_extra={"enum": list(SERVICES)})
]


class ServiceEvent(BaseModel):
    """An event in the envelope, as a service sends it, but for its tenant. `data` depends on the event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: EventName
    service: ServiceName
    event_id: uuid.UUID | None = None
    task_id: uuid.UUID | None = None
    global_task_id: uuid.UUID | None = None
    session_id: SessionId | None = None
    timestamp: datetime.datetime
    data: dict[str, Any]


class ServiceEventBody(ServiceEvent):
    """A frame of `/ws/task_updates`. The log gives the `seq`, whatever a service says."""

    tenant_id: TenantId
    seq: Annotated[int, WHOLE] | None = None


class ServiceTellAction(ServiceEvent, Action[None]):
    """Tell, as a service, what happens to a task, or to a thing of the tenant's."""

    verb = "service.tell"


Url = Annotated[str, StringConstraints(min_length=1, max_length=2_048, strip_whitespace=True)]


class WebhookResource(Result):
    """An endpoint as the API shows it. `secret` is there only in the answer that made it.

    `events` none: all. `disabled_reason`: `owner`, `gone` (it answered 410), `failing`, or empty.
    """

    webhook_id: uuid.UUID
    url: str
    description: str
    events: list[str]
    disabled: bool
    disabled_reason: str
    created_at: datetime.datetime
    updated_at: datetime.datetime
    secret: str | None = None


class WebhookCreate(BaseModel):
    """The body of a create."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Url
    events: tuple[EventName, ...] = ()
    description: Annotated[str, StringConstraints(max_length=500)] = ""
    disabled: StrictBool = False


class WebhookUpdate(BaseModel):
    """The body of a change: what is absent stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Url | None = None
    events: tuple[EventName, ...] | None = None
    description: Annotated[str, StringConstraints(max_length=500)] | None = None
    disabled: StrictBool | None = None


class WebhookCreateAction(WebhookCreate, Action[WebhookResource]):
    """Tell an address of the tenant's what happens; the answer has its secret, this once."""

    verb = "webhook.create"


class WebhookUpdateAction(WebhookUpdate, Action[WebhookResource]):
    """Change a webhook. Enabled again, it hears what happens from now on."""

    verb = "webhook.update"

    webhook_id: uuid.UUID


class WebhookDeleteAction(Action[None]):
    """Delete a webhook with its deliveries."""

    verb = "webhook.delete"

    webhook_id: uuid.UUID


class WebhookRotateAction(Action[WebhookResource]):
    """Give a webhook a new secret, shown this once; for a day the former one signs beside it."""

    verb = "webhook.rotate"

    webhook_id: uuid.UUID


class AttemptResource(BaseModel):
    """One request. `status_code` is null when there was no answer; `answer` is its beginning."""

    started_at: datetime.datetime
    seconds: float
    status_code: int | None
    error: str
    answer: str


class DeliveryResource(Result):
    """One event on its way to one webhook: `pending`, `delivered` or `dead`.

    `event_id` is the `webhook-id` of the request; `next_attempt_at` is null when there is none to come.
    """

    delivery_id: uuid.UUID
    webhook_id: uuid.UUID
    event: str
    event_id: uuid.UUID
    status: str
    next_attempt_at: datetime.datetime | None
    created_at: datetime.datetime
    finished_at: datetime.datetime | None
    attempts: list[AttemptResource]


class WebhookReplayAction(Action[DeliveryResource]):
    """Deliver once more, now: what died, what was delivered, or what waits for its next attempt."""

    verb = "webhook.replay"

    delivery_id: uuid.UUID


class WebhookRecordAttemptAction(Action[None]):
    """Write down what came of an attempt, and what follows from it. `claim` says whose it was."""

    verb = "webhook.record_attempt"

    delivery_id: uuid.UUID
    claim: uuid.UUID
    started_at: datetime.datetime
    seconds: float
    status_code: int | None = None
    error: str = ""
    answer: str = ""
