"""Templates in the console: here the operator writes those that are everybody's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from pydantic import TypeAdapter, ValidationError
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.widgets import UnfoldAdminTextareaWidget

from agents.admin.config_form import CONFIG_FIELDSETS, ConfigForm
from agents.admin.instantiate import InstantiatePages
from agents.models import AgentTemplate
from agents.template_actions import (
    TemplateCreateAction,
    TemplateDeleteAction,
    TemplateUpdateAction,
    TemplateVariable,
)
from core.actions.bus import execute
from core.admin.console import RefusableForm, SavesByAction, display, link
from core.models.membership import Role
from core.tenancy import tenant_scope

EXAMPLE = '[{"name": "company", "label": "Company", "type": "string", "default": "Acme"}]'
_variables = TypeAdapter(tuple[TemplateVariable, ...])


class TemplateForm(ConfigForm, RefusableForm):
    variables = forms.JSONField(
        label=_("Variables"),
        required=False,
        widget=UnfoldAdminTextareaWidget({"rows": 6}),
        help_text=_("A list in JSON, of the types string, text, number, boolean and choice: %(example)s")
        % {"example": EXAMPLE},
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "slug" in self.fields:  # not for who may only look
            self.fields["slug"].required = False
            self.fields["slug"].help_text = _("Made of the name when empty.")

    def clean_variables(self) -> list[dict[str, Any]]:
        try:
            variables = _variables.validate_python(self.cleaned_data["variables"] or [])
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            reasons = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problems]
            raise forms.ValidationError(reasons) from None
        return [variable.model_dump(mode="json") for variable in variables]


@admin.register(AgentTemplate)
class AgentTemplateAdmin(SavesByAction, InstantiatePages):
    changed_by = Role.EDITOR
    form = TemplateForm
    list_display = (
        "name",
        "category",
        "tenant_shown",
        "type",
        "version",
        "agents_shown",
        "updated_at",
        "made_shown",
    )
    list_select_related = ("tenant",)
    list_filter = (("tenant", AutocompleteSelectFilter), "category")
    search_fields = ("name", "slug")
    autocomplete_fields = ("tenant",)
    ordering = ("slug",)
    change_form_outer_before_template = "agents/admin/template.html"
    fieldsets = (
        (None, {"fields": (("name", "tenant"), ("type", "category"), "slug", "description", "variables")}),
        *CONFIG_FIELDSETS,
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentTemplate]:
        rows: QuerySet[AgentTemplate] = super().get_queryset(request)
        return rows.annotate(living=Count("agents", filter=Q(agents__deleted_at=None)))

    def get_list_display(self, request: HttpRequest) -> list[str]:
        """Who may not add agents is not led to where one does."""
        columns = super().get_list_display(request)
        return [name for name in columns if name != "made_shown" or self.has_instantiate_permission(request)]

    def get_readonly_fields(self, request: HttpRequest, obj: AgentTemplate | None = None) -> tuple[str, ...]:
        return ("tenant",) if obj else ()

    def save_model(self, request: HttpRequest, obj: AgentTemplate, form: Any, change: bool) -> None:
        fields = {
            "name": obj.name,
            "type": obj.type,
            "category": obj.category,
            "description": obj.description,
            "slug": obj.slug or None,
            "variables": form.cleaned_data["variables"],
            "shared": obj.tenant_id is None,
        }
        with _scope(obj):
            if change:
                config = form.config.model_dump(mode="json")
                execute(TemplateUpdateAction(**fields, config=config, template_id=obj.pk))
            else:
                obj.pk = execute(TemplateCreateAction(**fields, config=form.config)).template_id
        obj.refresh_from_db()

    def delete_model(self, request: HttpRequest, obj: AgentTemplate) -> None:
        with _scope(obj):
            execute(TemplateDeleteAction(template_id=obj.pk, shared=obj.tenant_id is None))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[AgentTemplate]) -> None:
        for template in queryset:
            self.delete_model(request, template)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Nothing goes with a template: the agents made from it stay."""
        names = [str(template) for template in objs]
        missing = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        return names, {self.opts.verbose_name_plural: len(names)}, missing, []

    @display(_("tenant"), ordering="tenant")
    def tenant_shown(self, template: AgentTemplate) -> Any:
        return template.tenant_id or _("all")

    @display(_("agents"))
    def agents_shown(self, template: Any) -> int:
        """How many have been made from it and live."""
        return int(template.living)

    @display(_("new agent"))
    def made_shown(self, template: AgentTemplate) -> Any:
        return link("admin:agents_agenttemplate_instantiate", _("Create an agent"), template.pk)


def _scope(template: AgentTemplate) -> AbstractContextManager[None]:
    return tenant_scope(template.tenant_id) if template.tenant_id else nullcontext()
