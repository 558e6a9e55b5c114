"""The envelope of every server message."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field

Service = Literal["agent-orchestrator", "agent-execution", "agent-management"]
# Every name of a service, the documents' second ones too.
SERVICES: Mapping[str, Service] = {
    name + ending: name for name in get_args(Service) for ending in ("", "-service")
}
# Which closing event this is. The log takes one of a run and of a task; of the attempt before the one it
# names, as long as that one has not begun.
Closes = Literal["attempt", "run", "task", ""]


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


class EventData(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Event(BaseModel):
    """One event as clients get it, without its `seq`, which the log gives.

    A subclass per event narrows `event`, `service` and `data`. `session_id` is empty in the log of a run
    without a session, and None for what has no log at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    closes: ClassVar[Closes] = ""

    event: str
    service: Service
    event_id: uuid.UUID = Field(default_factory=uuid.uuid4)
    task_id: uuid.UUID | None
    global_task_id: uuid.UUID | None
    tenant_id: str
    session_id: str | None
    timestamp: str = Field(default_factory=now)
    data: Any

    def body(self) -> bytes:
        """The event as JSON, still without `seq`."""
        return self.model_dump_json().encode()


def with_seq(body: bytes, seq: int | None) -> str:
    """The JSON text that clients get: `body` with its place in the session's log."""
    number = b"null" if seq is None else b"%d" % seq
    return (b'{"seq":' + number + b"," + body[1:]).decode()


def control(event: str, data: dict[str, Any] | None = None) -> str:
    """A control message: it carries no seq."""
    return orjson.dumps({"event": event, "data": data} if data is not None else {"event": event}).decode()
