"""The verbs of the workshop: runs, tenants' providers, checks of agents."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints
from pydantic_core import PydanticCustomError
from yarl import URL

from agents.config import ProviderName
from core.actions.base import Action, ActionError, Result, SessionId
from core.outbound import OutboundError, check_url
from core.queues.names import LOW


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


class AgentValidateAction(Action[None]):
    """Check an agent's newest version against the world: providers, models, placeholders, limits."""

    verb = "agent.validate"
    queue = ("agent", "validate")
    default_priority = LOW

    agent_id: uuid.UUID


class AskedValidation(Result):
    """A check that has been asked for; its result appears on the agent."""

    task_id: uuid.UUID
    agent_id: uuid.UUID
    status: str
    queue: str


class AgentAskValidationAction(Action[AskedValidation]):
    """Have an agent checked by a worker."""

    verb = "agent.ask_validation"

    agent_id: uuid.UUID


def _base_url(text: str) -> str:
    """Where it leads is asked at the connect; here only what can never be a base URL is refused."""
    text = text.strip().rstrip("/")
    try:
        check_url(text, ("0.0.0.0/0", "::/0"))
    except OutboundError as error:
        raise PydanticCustomError("base_url", "{reason}", {"reason": str(error)}) from None
    if URL(text).query_string:
        raise PydanticCustomError("base_url", "a query in the address")
    return text


BaseUrl = Annotated[str, StringConstraints(max_length=500), AfterValidator(_base_url)]


def _key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not 1 <= len(text) <= 2_000 or not (text.isascii() and text.isprintable()) or " " in text:
        raise PydanticCustomError("api_key", "1 to 2000 printable ASCII characters without spaces")
    return key


ApiKey = Annotated[SecretStr, AfterValidator(_key)]


class ProviderCheck(Result):
    """What asking the provider for its models came to; `models` is null when it keeps no list."""

    ok: bool
    models: int | None
    error: ActionError | None
    checked_at: datetime.datetime


class ProviderResource(Result):
    """A provider of the tenant's own. `key` shows the key's last four characters, and nothing opens it."""

    name: str
    kind: str
    base_url: str | None
    key: str | None
    check: ProviderCheck | None
    created_at: datetime.datetime
    updated_at: datetime.datetime


class ProviderCreate(BaseModel):
    """The body of a create. A name of ours takes the operator's place, at the vendor's own address
    without a `base_url`; any other name needs one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ProviderName
    kind: Literal["openai-wire"] = "openai-wire"
    base_url: BaseUrl | None = None
    api_key: ApiKey | None = None


class ProviderUpdate(BaseModel):
    """The body of a change: what is absent stays, null removes. A new address needs the key once more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: BaseUrl | None = None
    api_key: ApiKey | None = None


class ProviderCreateAction(ProviderCreate, Action[ProviderResource]):
    """Register a provider of the current tenant's own."""

    verb = "provider.create"


class ProviderUpdateAction(ProviderUpdate, Action[ProviderResource]):
    """Change the address or the key of a provider."""

    verb = "provider.update"

    name: ProviderName


class ProviderDeleteAction(Action[None]):
    """Forget a provider and its key."""

    verb = "provider.delete"

    name: ProviderName


class ProviderCheckAction(Action[ProviderResource]):
    """Ask the provider for its models, and keep what came of it."""

    verb = "provider.check"

    name: ProviderName
