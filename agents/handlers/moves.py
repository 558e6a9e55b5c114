"""Copies: within a tenant, and from a document."""

from __future__ import annotations

from django.utils.translation import gettext as _

from agents.actions import AgentDuplicateAction, AgentImportAction, AgentResource
from agents.handlers.rows import begin, config_of, slug_of
from agents.models import Agent
from agents.selectors import agent_get, agent_resource
from core.actions.registry import handles
from core.tenancy import current_tenant_id

NAME = 120  # characters that an agent's name may have


@handles(AgentDuplicateAction)
def duplicate(action: AgentDuplicateAction) -> AgentResource:
    source = agent_get(action.agent_id)
    assert source.version is not None
    copy = Agent(
        tenant_id=source.tenant_id,
        name=action.name or (_("%(name)s (copy)") % {"name": source.name})[:NAME],
        type=source.type,
        description=source.description,
        status=source.status,
        slug=slug_of(action.name) if action.name else source.slug,
    )
    words = {"slug": source.slug, "version": source.version.number}
    begin(
        copy,
        config_of(source.version.config),
        verb=action.verb,
        actor=action.actor,
        note=_("Copy of %(slug)s, version %(version)s") % words,
        slug_may_change=True,
    )
    return agent_resource(copy)


@handles(AgentImportAction)
def import_document(action: AgentImportAction) -> AgentResource:
    document = action.document
    agent = Agent(
        tenant_id=current_tenant_id(),
        name=document.name,
        type=document.type,
        description=document.description,
        status=Agent.Status.DRAFT if document.draft else Agent.Status.PUBLISHED,
        slug=document.slug or slug_of(document.name),
    )
    begin(
        agent,
        document.config,
        verb=action.verb,
        actor=action.actor,
        note=document.note,
        slug_may_change=True,
    )
    return agent_resource(agent)
