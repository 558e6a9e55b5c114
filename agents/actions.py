"""The verbs of agent management."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictBool

from agents.config import AgentConfig
from agents.document import AgentDocument
from agents.fields import Description, Kind, Name, Note, VersionNumber
from agents.validation import AgentValidation
from core.actions.base import Action, Result, Slug
from core.actions.suspension import Reason
from core.queues.names import HIGH


class MadeFrom(Result):
    """The template that an agent was made from, and as which version; `newer` if it has changed since."""

    id: uuid.UUID
    version: int
    newer: bool


class AgentResource(Result):
    """An agent as the API shows it; `version` counts from 1.

    `version` and `config` are the newest ones. `published_version` is the one that answers: it lags
    behind while a change waits to be published, and is null for a draft. `etag` names this state: the
    version, and how often all else has been changed since. `template` is null for an agent that was
    made without one, `validation` for one that was never checked and fits its tier, `suspended_at` for one
    that is not switched off.
    """

    agent_id: uuid.UUID
    slug: str
    name: str
    type: str
    description: str
    status: str
    version: int
    published_version: int | None
    etag: str
    config: AgentConfig
    suspended_at: datetime.datetime | None
    template: MadeFrom | None
    validation: AgentValidation | None
    created_at: datetime.datetime
    updated_at: datetime.datetime


class VersionResource(Result):
    """One version of an agent: it never changes. `published` says whether it is the one that answers."""

    agent_id: uuid.UUID
    version: int
    author: str
    note: str
    published: bool
    created_at: datetime.datetime
    config: AgentConfig


class AgentCreate(BaseModel):
    """The body of a create; the agent is published unless `draft`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    type: Kind
    config: AgentConfig
    description: Description = ""
    slug: Slug | None = None
    draft: StrictBool = False


class AgentUpdate(BaseModel):
    """The body of a change: what is absent stays. `config` is merged over the newest version's.

    A changed `config` is a new version, which keeps the `note`; of a published agent it answers at
    once, unless `publish` is false: then the agent goes on with its published version until it is
    published. `draft` is the agent's status: a draft answers nobody.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name | None = None
    type: Kind | None = None
    description: Description | None = None
    slug: Slug | None = None
    draft: StrictBool | None = None
    config: dict[str, Any] | None = None
    publish: StrictBool = True
    note: Note = ""


class AgentCreateAction(AgentCreate, Action[AgentResource]):
    """Make an agent with its version 1."""

    verb = "agent.create"

    actor: str


class ChangesAgent(BaseModel):
    """What every change of an agent has: which one, who asks, and the states that it may be in.

    `if_match` holds tags (`Agent.tag`); None when any state will do.
    """

    agent_id: uuid.UUID
    actor: str
    if_match: tuple[str, ...] | None = None


class AgentUpdateAction(AgentUpdate, ChangesAgent, Action[AgentResource]):
    """Change an agent; a changed configuration is a new version."""

    verb = "agent.update"


class AgentPublishAction(ChangesAgent, Action[AgentResource]):
    """Let the newest version answer."""

    verb = "agent.publish"


class AgentRollback(BaseModel):
    """The body of a rollback: the version to go back to, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: VersionNumber
    note: Note = ""


class AgentRollbackAction(AgentRollback, ChangesAgent, Action[AgentResource]):
    """Make an old configuration the newest version."""

    verb = "agent.rollback"


class AgentDeleteAction(ChangesAgent, Action[None]):
    """Delete an agent: it answers nobody any more, its history stays."""

    verb = "agent.delete"


class AgentRestoreAction(ChangesAgent, Action[AgentResource]):
    """Bring a deleted agent back as it was; its slug, if taken meanwhile, gets a suffix."""

    verb = "agent.restore"


class AgentSuspend(BaseModel):
    """The body of a suspension: why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Reason = ""


class AgentSuspendAction(AgentSuspend, ChangesAgent, Action[AgentResource]):
    """Switch an agent off: nobody chats with it, what runs or waits of it is cancelled."""

    verb = "agent.suspend"


class AgentUnsuspendAction(ChangesAgent, Action[AgentResource]):
    """Switch an agent on again. What was cancelled stays so."""

    verb = "agent.unsuspend"


class AgentStopRunsAction(Action[None]):
    """Cancel what runs and waits of an agent, while it is switched off."""

    verb = "agent.stop_runs"
    queue = ("orchestrator", "stop_runs")
    default_priority = HIGH

    agent_id: uuid.UUID


class AgentDuplicate(BaseModel):
    """The body of a duplicate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name | None = None


class AgentDuplicateAction(AgentDuplicate, Action[AgentResource]):
    """Make an agent like another one: same status, newest configuration, no history."""

    verb = "agent.duplicate"

    agent_id: uuid.UUID
    actor: str


class AgentImportAction(Action[AgentResource]):
    """Make an agent of an exported one; a slug that is taken gets a suffix."""

    verb = "agent.import"

    document: AgentDocument
    actor: str
