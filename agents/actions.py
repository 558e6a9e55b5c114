"""The verbs of agent management."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

from agents.config import AgentConfig
from core.actions.base import Action, Result, Slug

Name = Annotated[str, StringConstraints(min_length=1, max_length=120, strip_whitespace=True)]
Kind = Annotated[str, StringConstraints(min_length=1, max_length=64, strip_whitespace=True)]
Description = Annotated[str, StringConstraints(max_length=2_000)]


class AgentResource(Result):
    """An agent as the API shows it; `version` counts from 1."""

    agent_id: uuid.UUID
    slug: str
    name: str
    type: str
    description: str
    status: str
    version: int
    config: AgentConfig
    created_at: datetime.datetime
    updated_at: datetime.datetime


class AgentCreate(BaseModel):
    """The body of a create; the agent is published unless `draft`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    type: Kind
    config: AgentConfig
    description: Description = ""
    slug: Slug | None = None
    draft: bool = False


class AgentUpdate(BaseModel):
    """The body of a change: what is absent stays. `config` is merged over the present one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name | None = None
    type: Kind | None = None
    description: Description | None = None
    slug: Slug | None = None
    draft: bool | None = None
    config: dict[str, Any] | None = None


class AgentCreateAction(AgentCreate, Action[AgentResource]):
    """Make an agent with its version 1."""

    verb = "agent.create"

    actor: str


class AgentUpdateAction(AgentUpdate, Action[AgentResource]):
    """Change an agent; a changed configuration is a new version."""

    verb = "agent.update"

    agent_id: uuid.UUID
    actor: str


class AgentDeleteAction(Action[None]):
    """Delete an agent: it answers nobody any more, its history stays."""

    verb = "agent.delete"

    agent_id: uuid.UUID
    actor: str
