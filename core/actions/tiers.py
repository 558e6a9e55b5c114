"""The verbs of tiers and tenants: the platform's own people use them, in the console."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from core.actions.base import Action, Slug, TenantId
from core.models.tenant import MOST_RETENTION_DAYS

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Rate = Annotated[int, Field(ge=1, le=2_147_483_647)] | None  # a minute; None is no limit


class TierFields(BaseModel):
    """What a tier allows, whole: see `core.models.Tier`."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True)]
    allowed_models: tuple[ModelName, ...]
    priority_ceiling: Annotated[int, Field(ge=0, le=9)]
    weight: Annotated[float, Field(ge=0.01, le=100)]
    max_running: Annotated[int, Field(ge=1)]
    uses_environment_keys: bool
    own_providers: bool
    max_agents: Annotated[int, Field(ge=0)] | None
    max_webhooks: Annotated[int, Field(ge=0)] | None
    max_run_seconds: Annotated[float, Field(ge=1)] | None
    max_output_tokens: Annotated[int, Field(ge=1)] | None
    ip_requests_per_minute: Rate
    ip_connects_per_minute: Rate
    session_messages_per_minute: Rate
    agent_requests_per_minute: Rate
    tenant_requests_per_minute: Rate
    max_waiting: Annotated[int, Field(ge=1, le=2_147_483_647)] | None


class TierCreateAction(TierFields, Action[None]):
    """Make a tier."""

    verb = "tier.create"

    slug: Slug


class TierUpdateAction(TierFields, Action[None]):
    """Change what a tier allows. Nothing that is there stops: see agents/validation.py."""

    verb = "tier.update"

    slug: Slug


class TierDeleteAction(Action[None]):
    """Delete a tier that no tenant has."""

    verb = "tier.delete"

    slug: Slug


class TenantFields(BaseModel):
    """A tenant's name, its tier, and how long its sessions are kept; null: for ever."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=120, strip_whitespace=True)]
    tier: Slug
    retention_days: Annotated[int, Field(ge=1, le=MOST_RETENTION_DAYS)] | None


class TenantCreateAction(TenantFields, Action[None]):
    """Make a tenant."""

    verb = "tenant.create"

    tenant_id: TenantId


class TenantUpdateAction(TenantFields, Action[None]):
    """Rename a tenant or give it another tier."""

    verb = "tenant.update"

    tenant_id: TenantId
