"""The verb of the workshop."""

from __future__ import annotations

import uuid
from typing import Any

from pydantic import Field

from core.actions.base import Action, SessionId


class ExecuteAgentAction(Action[None]):
    """Run one version of an agent on one question of a session; ids only."""

    verb = "agent.execute"
    queue = ("agent", "execute")

    agent_id: uuid.UUID
    version_id: int
    session_id: SessionId
    session_row_id: int
    end_user: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)  # the caller's own, kept with the task
