"""The rules of agent management."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils.text import slugify
from django.utils.translation import gettext as _
from pydantic import ValidationError

from agents.actions import AgentCreateAction, AgentDeleteAction, AgentResource, AgentUpdateAction
from agents.config import AgentConfig
from agents.errors import AgentNotFound, SlugTaken
from agents.models import Agent, AgentVersion
from agents.selectors import agent_get, agent_resource
from core.actions.registry import handles
from core.errors import ValidationFailed
from core.models import Tenant
from core.tenancy import current_tenant_id


@handles(AgentCreateAction)
def create(action: AgentCreateAction) -> AgentResource:
    _check_tier(action.config)
    agent = Agent(
        tenant_id=current_tenant_id(),
        name=action.name,
        type=action.type,
        description=action.description,
        status=Agent.Status.DRAFT if action.draft else Agent.Status.PUBLISHED,
        slug=action.slug or _free_slug(action.name),
    )
    try:
        _save(agent)
    except SlugTaken:
        if action.slug is not None:
            raise
        agent.slug = _with_suffix(agent.slug)  # somebody was faster with the same name
        _save(agent)
    _new_version(agent, action.config, action.actor, number=1)
    return agent_resource(agent)


@handles(AgentUpdateAction)
def update(action: AgentUpdateAction) -> AgentResource:
    # One writer at a time: version numbers have no holes and no twins.
    Agent.objects.select_for_update().filter(pk=action.agent_id).first()
    agent = agent_get(action.agent_id)
    assert agent.version is not None
    for field, value in (
        ("name", action.name),
        ("type", action.type),
        ("description", action.description),
        ("slug", action.slug),
    ):
        if value is not None:
            setattr(agent, field, value)
    if action.draft is not None:
        agent.status = Agent.Status.DRAFT if action.draft else Agent.Status.PUBLISHED
    _save(agent)
    if action.config is not None:
        config = _merged(agent.version.config, action.config)
        _check_tier(config)
        if config != AgentConfig(**agent.version.config):
            _new_version(agent, config, action.actor, number=agent.version.number + 1)
    return agent_resource(agent)


@handles(AgentDeleteAction)
def delete(action: AgentDeleteAction) -> None:
    rows = Agent.objects.filter(pk=action.agent_id, deleted_at=None)
    if not rows.update(deleted_at=Now()):
        raise AgentNotFound()


def _merged(config: dict[str, Any], changes: dict[str, Any]) -> AgentConfig:
    try:
        return AgentConfig(**{**config, **changes})
    except ValidationError as error:
        raise ValidationFailed.of(error, prefix="config.") from None


def _new_version(agent: Agent, config: AgentConfig, author: str, number: int) -> None:
    agent.version = AgentVersion.unscoped.create(
        tenant_id=agent.tenant_id,
        agent=agent,
        number=number,
        config=config.model_dump(mode="json", exclude_none=True),
        author=author,
    )
    agent.save(update_fields=["version", "updated_at"])


def _save(agent: Agent) -> None:
    try:
        with transaction.atomic():
            agent.save()
    except IntegrityError as error:
        raise SlugTaken(details={"slug": agent.slug}) from error


def _free_slug(name: str) -> str:
    """A slug made of the name; one that is taken gets a random suffix."""
    slug = slugify(name)[:31].strip("-_").replace("_", "-") or "agent"
    if Agent.objects.filter(slug=slug, deleted_at=None).exists():
        return _with_suffix(slug)
    return slug


def _with_suffix(slug: str) -> str:
    return f"{slug}-{uuid.uuid4().hex[:8]}"


def _check_tier(config: AgentConfig) -> None:
    tier = Tenant.objects.select_related("tier").get(pk=current_tenant_id()).tier
    models = {"config.model": config.model}
    if config.fallback is not None:
        models["config.fallback.model"] = config.fallback.model
    message = _("The tier %(tier)s does not allow this model.") % {"tier": tier.name}
    refused = {field: message for field, model in models.items() if not tier.allows_model(model)}
    if refused:
        raise ValidationFailed(details=refused)
