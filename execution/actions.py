"""The verbs of the workshop: runs, tenants' providers, checks of agents."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StrictFloat,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError
from yarl import URL

from agents.config import ProviderName
from core.actions.base import Action, ActionError, Result, SessionId
from core.outbound import OutboundError, check_url
from core.queues.names import LOW
from core.rules import WHOLE
from execution.messages import Role


class RunMessage(BaseModel):
    """One message that a caller sends along."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str


StopSequence = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class RunOptions(BaseModel):
    """What a caller asks of one run, beside the agent's configuration.

    `max_output_tokens` lowers the agent's bound and never raises it. The answer ends before the first
    of the `stop` sequences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: StrictFloat | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    max_output_tokens: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = None
    stop: tuple[StopSequence, ...] | None = Field(None, max_length=4)


class ExecuteAgentAction(Action[None]):
    """Run one version of an agent: on one question of a session, or on the `messages` given here.

    A run without a session has an empty `session_id`. Its events go to a log of its own, named by its
    task, and its answer is in the task's result and nowhere else.
    """

    verb = "agent.execute"
    queue = ("agent", "execute")

    agent_id: uuid.UUID
    version_id: int
    session_id: SessionId | Literal[""]
    session_row_id: int | None = None
    messages: tuple[RunMessage, ...] | None = Field(None, min_length=1)
    options: RunOptions | None = None
    end_user: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)  # the caller's own, kept with the task

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        in_session = self.session_row_id is not None
        if in_session != bool(self.session_id) or in_session == (self.messages is not None):
            raise PydanticCustomError("messages", "either a session or messages")
        return self


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


ApiKey = Annotated[
    SecretStr,
    AfterValidator(_key),
    Field(json_schema_extra={"minLength": 1, "maxLength": 2_000, "pattern": "^[!-~]+$"}),
]


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
