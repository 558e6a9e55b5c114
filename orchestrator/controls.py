"""What sockets say beside events: control messages, and how they look. They carry no `seq`."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from core.actions.base import ActionError, ActionResult
from orchestrator.serializers import MessageItem


class Control(BaseModel):
    """A control message, as clients hear it."""

    model_config = ConfigDict(extra="forbid")

    event: str


class Established(BaseModel):
    session_id: str
    last_seq: int
    resume_token: str


class ConnectionEstablished(Control):
    """The socket is open: live events follow `last_seq`."""

    event: Literal["connection_established"]
    data: Established


class Ping(Control):
    """Say anything, or let the protocol's pong answer: who is silent is taken for gone (4408)."""

    event: Literal["ping"]


class Pong(Control):
    """The answer to the client's own `ping`."""

    event: Literal["pong"]


class ActionAnswer(Control):
    """What became of an action that the client has sent."""

    event: Literal["action_result"]
    data: ActionResult


class Refusal(Control):
    """A frame that is no action, or the reason for which the socket is closed next."""

    event: Literal["error"]
    data: ActionError


class Running(BaseModel):
    task_id: uuid.UUID
    attempt: int
    text: str


class HowItStands(BaseModel):
    messages: list[MessageItem]
    running: Running | None
    last_seq: int


class Snapshot(Control):
    """Stands for every event up to `last_seq`: what was said, and the answer that is under way."""

    event: Literal["snapshot"]
    data: HowItStands


class Reconnect(Control):
    """This server goes away (1012 follows): connect again, with `after` and the token."""

    event: Literal["reconnect"]


class Watched(BaseModel):
    channel: str


class WatchEstablished(Control):
    """A dashboard's socket is open."""

    event: Literal["connection_established"]
    data: Watched


class Update(Control):
    """Something of the tenant's has changed. `alias_of`: the event's first name, where it is told twice."""

    channel: str
    data: dict[str, Any]
    alias_of: str = ""


class Handshake(BaseModel):
    """The first frame of a service."""

    service_token: str
    service_name: str


class Authenticated(BaseModel):
    """The service is who it says."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["authenticated"]
