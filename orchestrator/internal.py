"""Shapes of the internal API: what services of the platform ask each other."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict

from agents.config import AgentConfig
from agents.validation import Finding
from core.actions.base import TenantId
from orchestrator.execution_actions import ExecutionBody


class InternalAgent(BaseModel):
    """An agent as a run needs it: one version with its whole configuration, which never changes."""

    agent_id: uuid.UUID
    tenant_id: str
    slug: str
    name: str
    type: str
    version: int
    config: AgentConfig


class InternalAgentCheck(BaseModel):
    """Whether an agent will answer: it is published, not switched off, and nothing found is an error.

    `findings` are what its last check and its tier say of its newest version.
    """

    agent_id: uuid.UUID
    tenant_id: str
    valid: bool
    published_version: int | None
    suspended: bool
    findings: list[Finding]


class InternalTask(BaseModel):
    """A task, whatever it does. `result` is its action's, `error` an error with type, message and details."""

    task_id: uuid.UUID
    global_task_id: uuid.UUID
    tenant_id: str
    action: str
    status: str
    attempt: int
    queue: str
    agent_id: uuid.UUID | None
    session_id: str
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None


class InternalTenantBody(BaseModel):
    """Whose the thing in the path is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant_id: TenantId


class InternalExecutionBody(ExecutionBody):
    """An execution of the tenant named; nobody waits for its end here."""

    tenant_id: TenantId
    wait: None = None
