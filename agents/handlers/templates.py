"""Templates: made, changed, and agents made from them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from agents.actions import AgentCreateAction, AgentResource
from agents.config import AgentConfig
from agents.errors import TemplateSlugTaken
from agents.events import notify_template
from agents.handlers.rows import config_of, slug_of
from agents.models import Agent, AgentTemplate
from agents.selectors import agent_get, agent_resource
from agents.template_actions import (
    TemplateCreateAction,
    TemplateDeleteAction,
    TemplateInstantiateAction,
    TemplateResource,
    TemplateUpdateAction,
    TemplateVariable,
    Value,
)
from agents.template_selectors import template_get, template_locked, template_resource
from agents.variables import PROMPT_VARIABLES, fill, placeholders
from core.actions.bus import execute
from core.actions.registry import handles
from core.audit import record
from core.errors import ValidationFailed
from core.tenancy import current_tenant_id

RECORDED = ("name", "slug", "category", "type", "description", "version", "config", "variables")


@handles(TemplateCreateAction)
def create(action: TemplateCreateAction) -> TemplateResource:
    template = AgentTemplate(
        tenant_id=None if action.shared else current_tenant_id(),
        slug=action.slug or slug_of(action.name),
        name=action.name,
        category=action.category,
        type=action.type,
        description=action.description,
    )
    _fill_in(template, action.config, action.variables)
    try:
        _save(template)
    except TemplateSlugTaken:
        if action.slug is not None:
            raise
        template.slug = f"{template.slug[:31].strip('-')}-{uuid.uuid4().hex[:8]}"
        _save(template)
    _on_record(template, action.verb, before={}, after=_state(template))
    notify_template("template_created", template)
    return template_resource(template)


@handles(TemplateUpdateAction)
def update(action: TemplateUpdateAction) -> TemplateResource:
    template = template_locked(action.template_id, shared=action.shared)
    before = _state(template)
    for field in ("name", "slug", "category", "type", "description"):
        value = getattr(action, field)
        if value is not None:
            setattr(template, field, value)
    present = template_resource(template)
    _fill_in(
        template,
        config_of({**template.config, **action.config}) if action.config is not None else present.config,
        action.variables if action.variables is not None else present.variables,
    )
    if (template.config, template.variables) != (before["config"], before["variables"]):
        template.version += 1
    after = _state(template)
    if after != before:
        _save(template)
        _on_record(template, action.verb, before=before, after=after)
        notify_template("template_updated", template)
    return template_resource(template)


@handles(TemplateDeleteAction)
def delete(action: TemplateDeleteAction) -> None:
    template = template_locked(action.template_id, shared=action.shared)
    _on_record(template, action.verb, before=_state(template), after={})
    template.delete()


@handles(TemplateInstantiateAction)
def instantiate(action: TemplateInstantiateAction) -> AgentResource:
    template = template_get(action.template_id)
    source = template_resource(template)
    values = _texts(source.variables, action.variables)
    config = config_of({**_filled(source.config.model_dump(mode="json"), values), **action.config})
    created = execute(
        AgentCreateAction(
            name=action.name,
            type=action.type or template.type,
            description=template.description if action.description is None else action.description,
            slug=action.slug,
            draft=action.draft,
            config=config,
            actor=action.actor,
        )
    )
    rows = Agent.objects.filter(pk=created.agent_id)
    rows.update(template=template, template_version=template.version)
    return agent_resource(agent_get(created.agent_id))


def _fill_in(template: AgentTemplate, config: AgentConfig, variables: Sequence[TemplateVariable]) -> None:
    """Raises ValidationFailed when a name stands twice, or a placeholder for nothing."""
    names = [variable.name for variable in variables]
    if len(set(names)) != len(names):
        raise ValidationFailed(details={"variables": _("Two variables have the same name.")})
    known = {*names, *PROMPT_VARIABLES}
    refused = {}
    for field, text in _texts_in(config.model_dump(mode="json"), "config"):
        for name in sorted(placeholders(text) - known):
            refused[field] = _("There is no variable %(name)s.") % {"name": name}
    if refused:
        raise ValidationFailed(details=refused)
    template.config = config.model_dump(mode="json", exclude_none=True)
    template.variables = [variable.model_dump(mode="json") for variable in variables]


def _texts(variables: Sequence[TemplateVariable], given: dict[str, Value]) -> dict[str, str]:
    """What each placeholder stands for. Raises ValidationFailed."""
    refused = {
        f"variables.{name}": _("The template has no such variable.")
        for name in given.keys() - {variable.name for variable in variables}
    }
    texts = {}
    for variable in variables:
        value = given.get(variable.name, variable.default)
        if value is None:
            refused[f"variables.{variable.name}"] = _("A value is required.")
            continue
        try:
            texts[variable.name] = variable.text_of(value)
        except ValueError as error:
            refused[f"variables.{variable.name}"] = str(error)
    if refused:
        raise ValidationFailed(details=refused)
    return texts


def _filled(value: Any, texts: dict[str, str]) -> Any:
    """The value with every text in it filled in."""
    if isinstance(value, str):
        return fill(value, texts)
    if isinstance(value, dict):
        return {name: _filled(item, texts) for name, item in value.items()}
    return [_filled(item, texts) for item in value] if isinstance(value, list) else value


def _texts_in(value: Any, place: str) -> list[tuple[str, str]]:
    """Every text in the value, by its dotted place."""
    if isinstance(value, str):
        return [(place, value)]
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [found for name, item in items for found in _texts_in(item, f"{place}.{name}")]


def _state(template: AgentTemplate) -> dict[str, Any]:
    return {field: getattr(template, field) for field in RECORDED}


def _on_record(template: AgentTemplate, verb: str, *, before: dict[str, Any], after: dict[str, Any]) -> None:
    record(verb, "template", template.pk, tenant_id=template.tenant_id, before=before, after=after)


def _save(template: AgentTemplate) -> None:
    try:
        with transaction.atomic():
            template.save()
    except IntegrityError as error:
        raise TemplateSlugTaken(details={"slug": template.slug}) from error
