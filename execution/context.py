"""All that a run may see, as plain data."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

from agents.config import AgentConfig
from execution.messages import ChatMessage


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run: the version it is pinned to, what was said (oldest first), and who is speaking.

    `timeout` is the longest the whole run may take, in seconds. `is_given`: the history is what a caller
    has sent with a run without a session; nothing of it is left out.
    """

    agent_name: str
    config: AgentConfig
    history: tuple[ChatMessage, ...]
    session_id: str
    end_user: str
    now: datetime.datetime
    timeout: float
    stop: tuple[str, ...] = ()
    context_variables: Mapping[str, str] = field(default_factory=dict)  # of the session
    is_given: bool = False
