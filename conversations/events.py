"""What a session's clients hear of the session itself."""

from __future__ import annotations

import datetime
from typing import Literal

from core.events.base import Event, EventData, Service


class EndedSession(EventData):
    ended_at: datetime.datetime


class SessionWasClosed(Event):
    """The session takes no more messages. Runs that are under way are cancelled: their ends follow."""

    event: Literal["session_closed"] = "session_closed"
    service: Service = "agent-orchestrator"
    data: EndedSession
