"""An agent as one JSON document, to move it: between tenants, installations, and into a repository."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from agents.config import BUILT_IN_PROVIDERS, AgentConfig
from agents.fields import Description, Kind, Name, Note
from core.actions.base import Slug

FORMAT: Literal["nooble.agent"] = "nooble.agent"
FORMAT_VERSION: Literal[1] = 1

SecretSlot = Annotated[str, StringConstraints(max_length=128)]


class AgentDocument(BaseModel):
    """An exported agent: its newest configuration and that version's note, no history, no secret.

    `secrets` names what the importing tenant has to bring itself: `provider:<name>` for each
    provider that the tenant registered with its own key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["nooble.agent"]
    format_version: Literal[1]
    name: Name
    type: Kind
    slug: Slug | None = None
    description: Description = ""
    draft: StrictBool = False
    note: Note = ""
    config: AgentConfig
    secrets: Annotated[tuple[SecretSlot, ...], Field(max_length=100)] = ()


def secret_slots(config: AgentConfig) -> tuple[str, ...]:
    """The secrets that this configuration needs, by name."""
    providers = {config.provider} | ({config.fallback.provider} if config.fallback else set())
    return tuple(f"provider:{name}" for name in sorted(providers.difference(BUILT_IN_PROVIDERS)))
