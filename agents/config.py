"""What an agent is told to be: one schema for the API, the admin, stored versions and runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StringConstraints

from core.ids import SLUG_PATTERN
from core.origins import as_browsers_write
from core.rules import WHOLE

# Providers that every tenant knows; any other name is one that the tenant has registered.
BUILT_IN_PROVIDERS = ("openai", "groq", "scripted")

ProviderName = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
Origin = Annotated[str, StringConstraints(max_length=300), AfterValidator(as_browsers_write)]
Access = Literal["public", "signed", "key"]


class Fallback(BaseModel):
    """The model that answers when the agent's own cannot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: ProviderName
    model: ModelName


class AgentConfig(BaseModel):
    """An agent's configuration; only `provider` and `model` are required."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: ProviderName = Field(
        description="openai, groq, scripted, or a name that the tenant registered."
    )
    model: ModelName
    fallback: Fallback | None = Field(
        None,
        description="Asked instead when the provider is away, over its rate limit or too slow, and nothing "
        "has been answered yet.",
    )
    instructions: Annotated[str, StringConstraints(max_length=32_768)] = Field(
        "",
        description="The system prompt; {{agent_name}}, {{user_id}}, {{session_id}}, {{date}}, {{time}} and "
        "the session's context variables are replaced.",
    )
    temperature: StrictFloat | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    max_output_tokens: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = None
    context_tokens: Annotated[int, Field(ge=256, le=2_000_000), WHOLE] = Field(
        16_000, description="How many tokens of history a run may send, estimated."
    )
    timeout_seconds: StrictFloat | None = Field(
        None,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="The longest a run may take; the platform's bound when absent.",
    )
    max_turns: Annotated[int, Field(ge=1, le=100), WHOLE] = Field(
        10, description="How many model calls one run may make."
    )
    multitask_strategy: Literal["enqueue", "reject", "interrupt"] = Field(
        "enqueue",
        description="What becomes of a message that comes while its session still has a run: it waits, is "
        "refused with 409, or ends that run.",
    )
    restart_after_fault: StrictBool = Field(
        False,
        description="After the first token a provider fault restarts the run as a new attempt, at most 3 "
        "attempts, instead of failing it.",
    )
    greeting: Annotated[str, StringConstraints(max_length=2_000)] = Field(
        "", description="What the chat page shows before the first message."
    )
    access: Access = Field(
        "public",
        description="Who may chat: everybody; end users with a token that the tenant has signed; or the "
        "tenant's own keys only. A key opens all three.",
    )
    allowed_origins: tuple[Origin, ...] = Field(
        (),
        max_length=100,
        description="The web pages, as https://host, that browsers may chat from; every page when there are "
        "none. What is no browser sends no origin, and passes.",
    )
    require_resume_token: StrictBool = Field(
        False,
        description="Once a session has a message, its id alone opens nothing: speaking and listening need "
        "the resume token.",
    )
