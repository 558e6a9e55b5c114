"""Agents in the console: everything that is saved goes through the verbs of agent management."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesCheckboxFilter

from agents.actions import AgentCreateAction, AgentDeleteAction, AgentUpdateAction
from agents.config import AgentConfig
from agents.models import Agent, AgentTemplate, AgentVersion
from core.actions.bus import execute
from core.admin.console import Console, LookOnly, RefusableForm, SavesByAction, actor_of, display, pretty
from core.admin.forms import fields_of, initial_of, value_of
from core.tenancy import tenant_scope

PREFIX = "config_"
WORDS = {
    "provider": (_("provider"), ""),
    "model": (_("model"), _("The provider's name of the model.")),
    "fallback_provider": (
        _("fallback provider"),
        _("Asked instead when the provider is away, and nothing has been answered yet."),
    ),
    "fallback_model": (_("fallback model"), ""),
    "instructions": (
        _("instructions"),
        _("The system prompt. Replaced: {{agent_name}}, {{user_id}}, {{session_id}}, {{date}}, {{time}}."),
    ),
    "temperature": (_("temperature"), _("0 to 2; the provider's own when empty.")),
    "max_output_tokens": (_("max. output tokens"), _("The provider's own bound when empty.")),
    "context_tokens": (_("context tokens"), _("How many tokens of history a run may send, estimated.")),
    "timeout_seconds": (_("timeout in seconds"), _("The longest a run may take; the platform's when empty.")),
    "max_turns": (_("max. turns"), _("How many model calls one run may make.")),
    "multitask_strategy": (
        _("while a run is open"),
        _("The session's next message waits (enqueue), is refused (reject), or ends the run (interrupt)."),
    ),
    "restart_after_fault": (
        _("restart after a fault"),
        _("A provider that fails in the middle of an answer is asked anew, at most 3 times in all."),
    ),
    "greeting": (_("greeting"), _("What the chat page shows before the first message.")),
}
CONFIG_FIELDS = fields_of(AgentConfig, PREFIX, WORDS)
ANSWERS = ("config_provider", "config_model", "config_instructions", "config_greeting")
FAULTS = (
    "config_fallback_provider",
    "config_fallback_model",
    "config_multitask_strategy",
    "config_restart_after_fault",
)
# What the schema gains appears here by itself.
LIMITS = [name for name in CONFIG_FIELDS if name not in ANSWERS + FAULTS]
CONFIG_FIELDSETS = (
    (_("Model"), {"fields": (("config_provider", "config_model"), "config_instructions", "config_greeting")}),
    (_("Faults and order"), {"fields": (FAULTS[:2], FAULTS[2:])}),
    (_("Limits"), {"fields": [tuple(LIMITS[at : at + 2]) for at in range(0, len(LIMITS), 2)]}),
)


ConfigFields = type("ConfigFields", (forms.Form,), dict(CONFIG_FIELDS))


class ConfigForm(forms.ModelForm, ConfigFields):  # type: ignore[misc, type-arg, valid-type]
    """A model's own fields, and those of its configuration."""

    config: AgentConfig | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        instance = kwargs.get("instance")
        present = self.present_config(instance) if instance is not None else None
        if present is not None:
            initial = initial_of(AgentConfig(**present), PREFIX)
            kwargs["initial"] = {**initial, **(kwargs.get("initial") or {})}
        super().__init__(*args, **kwargs)
        if "description" in self.fields:
            self.fields["description"].widget.attrs["rows"] = 3

    def present_config(self, instance: Any) -> dict[str, Any] | None:
        """The configuration to begin with, if there is one yet."""
        config: dict[str, Any] | None = instance.config
        return config

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        config = value_of(self, AgentConfig, PREFIX)
        assert config is None or isinstance(config, AgentConfig)
        self.config = config
        return cleaned


class AgentForm(ConfigForm, RefusableForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "slug" in self.fields:
            self.fields["slug"].required = False
            self.fields["slug"].help_text = _("Made of the name when empty.")

    def present_config(self, instance: Agent) -> dict[str, Any] | None:
        return instance.version.config if instance.version is not None else None


class VersionInline(LookOnly, TabularInline):  # type: ignore[misc]
    """The agent's history: versions never change."""

    model = AgentVersion
    verbose_name_plural = _("versions")
    fields = ("number", "author", "created_at", "config_shown")
    readonly_fields = fields
    ordering = ("-number",)
    per_page = 10
    hide_title = True
    extra = 0
    tab = True

    @display(_("config"))
    def config_shown(self, version: AgentVersion) -> Any:
        return pretty(version.config)


@admin.register(Agent)
class AgentAdmin(SavesByAction, Console):
    form = AgentForm
    inlines = (VersionInline,)
    list_display = ("name", "tenant", "status_shown", "model_shown", "version_shown", "updated_at")
    list_filter = (
        ("tenant", AutocompleteSelectFilter),
        ("status", ChoicesCheckboxFilter),
    )
    search_fields = ("name", "slug", "type")
    autocomplete_fields = ("tenant",)
    ordering = ("-pk",)
    fieldsets = (
        (
            None,
            {"fields": (("name", "tenant"), ("type", "slug"), "description", "status")},
        ),
        *CONFIG_FIELDSETS,
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Agent]:
        """Deleted agents are hidden from the list; what their runs left still leads to their page."""
        rows: QuerySet[Agent] = super().get_queryset(request)
        rows = rows.select_related("tenant", "version")
        match = request.resolver_match
        return rows if match and match.url_name == "agents_agent_change" else rows.filter(deleted_at=None)

    def get_inlines(self, request: HttpRequest, obj: Agent | None = None) -> tuple[Any, ...]:
        return self.inlines if obj else ()

    def get_readonly_fields(self, request: HttpRequest, obj: Agent | None = None) -> tuple[str, ...]:
        return ("tenant",) if obj else ()

    def has_change_permission(self, request: HttpRequest, obj: Agent | None = None) -> bool:
        return bool(super().has_change_permission(request, obj)) and not (obj and obj.deleted_at)

    def has_delete_permission(self, request: HttpRequest, obj: Agent | None = None) -> bool:
        return bool(super().has_delete_permission(request, obj)) and not (obj and obj.deleted_at)

    def view_on_site(self, obj: Agent) -> str:
        """Its chat page."""
        return f"/chat/{obj.pk}"

    def save_model(self, request: HttpRequest, obj: Agent, form: Any, change: bool) -> None:
        fields = {
            "name": obj.name,
            "type": obj.type,
            "description": obj.description,
            "slug": obj.slug or None,
            "draft": obj.status == Agent.Status.DRAFT,
            "actor": actor_of(request),
        }
        with tenant_scope(obj.tenant_id):
            if change:
                config = form.config.model_dump(mode="json")
                execute(AgentUpdateAction(**fields, config=config, agent_id=obj.pk))
            else:
                obj.pk = execute(AgentCreateAction(**fields, config=form.config)).agent_id
        obj.refresh_from_db()

    def delete_model(self, request: HttpRequest, obj: Agent) -> None:
        with tenant_scope(obj.tenant_id):
            execute(AgentDeleteAction(agent_id=obj.pk, actor=actor_of(request)))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Agent]) -> None:
        for agent in queryset:
            self.delete_model(request, agent)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Nothing goes with an agent: its versions and conversations stay."""
        names = [str(agent) for agent in objs]
        missing = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        return names, {self.opts.verbose_name_plural: len(names)}, missing, []

    @display(
        _("status"),
        ordering="status",
        label={Agent.Status.PUBLISHED: "success", Agent.Status.DRAFT: "warning"},
    )
    def status_shown(self, agent: Agent) -> tuple[str, str]:
        return agent.status, agent.get_status_display()

    @display(_("model"))
    def model_shown(self, agent: Agent) -> str:
        assert agent.version is not None
        return f"{agent.version.config['provider']} / {agent.version.config['model']}"

    @display(_("version"))
    def version_shown(self, agent: Agent) -> str:
        return str(agent.version)


@admin.register(AgentTemplate)
class AgentTemplateAdmin(Console):
    form = ConfigForm
    list_display = ("name", "slug", "tenant_shown", "type", "updated_at")
    list_select_related = ("tenant",)
    list_filter = (("tenant", AutocompleteSelectFilter),)
    search_fields = ("name", "slug")
    autocomplete_fields = ("tenant",)
    ordering = ("slug",)
    fieldsets = (
        (None, {"fields": (("name", "tenant"), ("type", "slug"), "description")}),
        *CONFIG_FIELDSETS,
    )

    def save_model(self, request: HttpRequest, obj: AgentTemplate, form: Any, change: bool) -> None:
        obj.config = form.config.model_dump(mode="json", exclude_none=True)
        super().save_model(request, obj, form, change)

    @display(_("tenant"), ordering="tenant")
    def tenant_shown(self, template: AgentTemplate) -> Any:
        return template.tenant_id or _("all")
