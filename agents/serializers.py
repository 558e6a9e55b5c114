"""Shapes of agents and versions in lists and comparisons."""

from __future__ import annotations

import uuid
from typing import Any

from pydantic import BaseModel, Field

from agents.actions import AgentResource, VersionResource


class AgentList(BaseModel):
    """A page of agents; `next` is the cursor of the following one, or null."""

    items: list[AgentResource]
    next: str | None


class VersionList(BaseModel):
    """A page of versions; `next` is the cursor of the following one, or null."""

    items: list[VersionResource]
    next: str | None


class FieldChange(BaseModel):
    """A field, dotted, in two states; `diff` is the unified diff of a long text, else absent."""

    field: str
    before: Any
    after: Any
    diff: str


class VersionDiff(BaseModel):
    """What differs between two versions."""

    agent_id: uuid.UUID
    from_: int = Field(alias="from")
    to: int
    diff: list[FieldChange]
