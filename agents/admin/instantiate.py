"""Making an agent from a template: a form with a field for each of its variables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.text import capfirst
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from pydantic import ValidationError
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from agents.admin.config_form import PREFIX, WORDS
from agents.models import Agent, AgentTemplate
from agents.template_actions import TemplateInstantiateAction, TemplateResource, TemplateVariable
from agents.template_selectors import template_resource
from core.actions.bus import execute
from core.admin.console import Console, actor_of, show_refusal
from core.admin.forms import TextField, YesOrNoField
from core.api.errors import named
from core.errors import NoobleError
from core.tenancy import tenant_scope

VARIABLE = "variables_"
OTHER_MODEL = ("provider", "model")


class InstantiateForm(forms.Form):
    """The new agent's name, a field for each variable, and another model if the template's will not do.

    What the values have to be is the action's business: it refuses in the same words as in the API.
    """

    name = forms.CharField(label=_("Name"), widget=UnfoldAdminTextInputWidget)
    slug = forms.CharField(
        label=_("Slug"),
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text=_("Made of the name when empty."),
    )
    draft = forms.BooleanField(
        label=_("Draft"),
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text=_("A draft answers nobody until you publish it."),
    )

    def __init__(self, template: TemplateResource, tenant: forms.Field | None, data: Any = None) -> None:
        super().__init__(data)
        self.template = template
        if tenant is not None:
            self.fields = {"tenant": tenant, **self.fields}
        for variable in template.variables:
            self.fields[VARIABLE + variable.name] = _field_of(variable)
        for name in OTHER_MODEL:
            self.fields[PREFIX + name] = forms.CharField(
                label=capfirst(WORDS[name][0]),
                required=False,
                widget=UnfoldAdminTextInputWidget({"placeholder": getattr(template.config, name)}),
                help_text=_("The template's when empty."),
            )

    def sections(self) -> Iterator[tuple[Any, list[forms.BoundField]]]:
        """The fields as the page groups them."""
        titles = {VARIABLE: _("Variables"), PREFIX: _("Another model")}
        about = [name for name in self.fields if not name.startswith(tuple(titles))]
        yield _("The new agent"), [self[name] for name in about]
        for prefix, title in titles.items():
            names = [name for name in self.fields if name.startswith(prefix)]
            if names:
                yield title, [self[name] for name in names]

    def action(self, actor: str) -> TemplateInstantiateAction:
        """Raises pydantic's ValidationError."""
        given = self.cleaned_data
        values = {variable.name: given[VARIABLE + variable.name] for variable in self.template.variables}
        return TemplateInstantiateAction(
            template_id=self.template.template_id,
            name=given["name"],
            slug=given["slug"] or None,
            draft=given["draft"],
            variables={name: value for name, value in values.items() if value is not None},
            config={name: given[PREFIX + name] for name in OTHER_MODEL if given[PREFIX + name]},
            actor=actor,
        )


def _field_of(variable: TemplateVariable) -> forms.Field:
    """A text that has a default may be emptied; everything else has to have a value."""
    open_ = variable.default is None
    common: dict[str, Any] = {
        "label": variable.label or variable.name,
        "initial": variable.default,
        "required": open_,
        "error_messages": {"required": _("A value is required.")},
    }
    if variable.type == "text":
        return TextField(widget=UnfoldAdminTextareaWidget({"rows": 4}), **common)
    if variable.type == "number":
        widget = UnfoldAdminDecimalFieldWidget({"step": "any"})
        return forms.FloatField(widget=widget, **{**common, "required": True})
    if variable.type == "boolean":
        if open_:
            return YesOrNoField(**common)
        return forms.BooleanField(widget=UnfoldBooleanSwitchWidget, **common)
    if variable.type == "choice":
        choices = [("", "-")] * open_ + [(choice, choice) for choice in variable.choices]
        return forms.ChoiceField(
            choices=choices, widget=UnfoldAdminSelectWidget, **{**common, "required": True}
        )
    return forms.CharField(strip=False, widget=UnfoldAdminTextInputWidget, **common)


class InstantiatePages(Console):
    """What a template's page leads to, for people who see templates and may add agents."""

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.instantiate_page)
        address = path("<uuid:template_id>/instantiate/", view, name="agents_agenttemplate_instantiate")
        return [address, *super().get_urls()]

    def has_instantiate_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("agents.add_agent"))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> Any:
        context = {"may_instantiate": self.has_instantiate_permission(request), **(extra_context or {})}
        return super().change_view(request, object_id, form_url, context)

    def instantiate_page(self, request: HttpRequest, template_id: Any) -> HttpResponse:
        if not (self.has_instantiate_permission(request) and self.has_view_permission(request)):
            raise PermissionDenied
        template: AgentTemplate | None = self.get_object(request, str(template_id))
        if template is None:
            back: HttpResponse = self._get_obj_does_not_exist_redirect(request, self.opts, str(template_id))
            return back
        form = self._instantiate_form(request, template)
        if request.method == "POST" and form.is_valid():
            tenant_id = template.tenant_id or form.cleaned_data["tenant"].pk
            try:
                with tenant_scope(tenant_id):
                    made = execute(form.action(actor_of(request)))
            except (NoobleError, ValidationError) as error:
                show_refusal(form, named(error))
            else:
                return self._instantiated(request, template, made.agent_id)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "template": template,
            "form": form,
            "media": self.media + form.media,
            "title": _("Create an agent"),
        }
        return TemplateResponse(request, "agents/admin/instantiate.html", context)

    def _instantiate_form(self, request: HttpRequest, template: AgentTemplate) -> InstantiateForm:
        # A template of a tenant's own makes agents of that tenant.
        tenant = None
        if template.tenant_id is None:
            tenant = self.formfield_for_dbfield(Agent._meta.get_field("tenant"), request)
        return InstantiateForm(template_resource(template), tenant, request.POST or None)

    def _instantiated(self, request: HttpRequest, template: AgentTemplate, agent_id: Any) -> HttpResponse:
        agent = Agent.unscoped.get(pk=agent_id)
        told = gettext("Made from the template %(template)s.") % {"template": template.name}
        self.log_addition(request, agent, told)
        self.message_user(request, told, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:agents_agent_change", args=[agent.pk]))
