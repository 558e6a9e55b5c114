"""Shapes of agents in lists."""

from __future__ import annotations

from pydantic import BaseModel

from agents.actions import AgentResource


class AgentList(BaseModel):
    """A page of agents; `next` is the cursor of the following one, or null."""

    items: list[AgentResource]
    next: str | None
