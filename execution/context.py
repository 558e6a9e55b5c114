"""All that a run may see, as plain data."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from agents.config import AgentConfig
from execution.messages import ChatMessage


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run: the version it is pinned to, what was said (oldest first), and who is speaking.

    `timeout` is the longest the whole run may take, in seconds.
    """

    agent_name: str
    config: AgentConfig
    history: tuple[ChatMessage, ...]
    session_id: str
    end_user: str
    now: datetime.datetime
    timeout: float
