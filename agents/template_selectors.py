"""Named reads of templates."""

from __future__ import annotations

import uuid

from django.db.models import Q, QuerySet

from agents.config import AgentConfig
from agents.errors import TemplateNotFound
from agents.models import AgentTemplate
from agents.template_actions import TemplateResource, TemplateVariable
from core.tenancy import current_tenant_id


def template_get(template_id: uuid.UUID) -> AgentTemplate:
    """A template that the current tenant sees: its own, or everybody's. Raises TemplateNotFound."""
    return _one(_seen(), template_id)


def template_locked(template_id: uuid.UUID, *, shared: bool) -> AgentTemplate:
    """A template to change: the current tenant's own, or if `shared` everybody's. Raises TemplateNotFound.

    Nobody else changes it until the end of the transaction.
    """
    rows = AgentTemplate.objects.select_for_update(no_key=True)
    tenant_id = None if shared else current_tenant_id()
    return _one(rows.filter(tenant_id=tenant_id), template_id)


def template_list(after: uuid.UUID | None, limit: int, category: str | None = None) -> list[AgentTemplate]:
    """Templates that the current tenant sees, oldest first, `limit` of them from `after` on."""
    rows = _seen().order_by("pk")
    if category is not None:
        rows = rows.filter(category=category)
    return list(rows.filter(pk__gt=after)[:limit] if after else rows[:limit])


def template_resource(template: AgentTemplate) -> TemplateResource:
    """The template as the API shows it."""
    return TemplateResource(
        template_id=template.pk,
        shared=template.tenant_id is None,
        slug=template.slug,
        name=template.name,
        category=template.category,
        type=template.type,
        description=template.description,
        version=template.version,
        config=AgentConfig(**template.config),
        variables=tuple(TemplateVariable(**fields) for fields in template.variables),
        created_at=template.created_at,
        updated_at=template.updated_at,
    )


def _seen() -> QuerySet[AgentTemplate]:
    return AgentTemplate.objects.filter(Q(tenant_id=current_tenant_id()) | Q(tenant=None))


def _one(rows: QuerySet[AgentTemplate], template_id: uuid.UUID) -> AgentTemplate:
    template = rows.filter(pk=template_id).first()
    if template is None:
        raise TemplateNotFound()
    return template
