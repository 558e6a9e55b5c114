"""Agents in the console."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesCheckboxFilter, DropdownFilter

from agents.actions import (
    AgentCreateAction,
    AgentDeleteAction,
    AgentDuplicateAction,
    AgentPublishAction,
    AgentRestoreAction,
    AgentSuspendAction,
    AgentUnsuspendAction,
    AgentUpdateAction,
)
from agents.admin.bulk import BulkPages
from agents.admin.checks import CHECK, CHECKS, FIELDSET, ShowsChecks
from agents.admin.config_form import CONFIG_FIELDSETS
from agents.admin.embed import EmbedPages
from agents.admin.forms import AgentForm
from agents.errors import StaleVersion
from agents.models import Agent, AgentVersion
from core.actions.base import Action
from core.actions.bus import execute
from core.admin.console import LookOnly, SavesByAction, Verb, actor_of, display, link, shown_diff
from core.admin.switch import KillSwitch
from core.models.membership import Role
from core.tenancy import tenant_scope

# In other languages than English it agrees with its noun.
PUBLISHED = pgettext_lazy("version", "published")


class VersionInline(LookOnly, TabularInline):  # type: ignore[misc]
    """The agent's history: versions never change."""

    model = AgentVersion
    verbose_name_plural = _("versions")
    fields = ("number_shown", "author", "created_at", "note", "compared")
    readonly_fields = fields
    ordering = ("-number",)
    per_page = 10
    hide_title = True
    extra = 0
    tab = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentVersion]:
        rows: QuerySet[AgentVersion] = super().get_queryset(request)
        return rows.select_related("agent__version")

    @display(_("version"))
    def number_shown(self, version: AgentVersion) -> Any:
        if version.pk == version.agent.published_id:
            return format_html("{} ({})", version.number, PUBLISHED)
        return version.number

    @display(_("changes"))
    def compared(self, version: AgentVersion) -> Any:
        """To what it changed, and to what it would be to go back to it."""
        newest = version.agent.version
        assert newest is not None
        page, agent, number = "admin:agents_agent_compare", version.agent_id, version.number
        links = []
        if number > 1:
            query = f"?from={number - 1}&to={number}"
            links.append(link(page, _("its changes"), agent, query=query))
        if number != newest.number:
            query = f"?from={number}&to={newest.number}"
            links.append(link(page, _("compare, go back"), agent, query=query))
        return format_html(" · ".join(["{}"] * len(links)), *links) if links else "-"


class DeletedFilter(DropdownFilter):  # type: ignore[misc]
    """Deleted agents are hidden unless they are asked for."""

    title = _("deleted")
    parameter_name = "deleted"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("1", _("Only deleted"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Agent]) -> QuerySet[Agent]:
        return queryset.filter(deleted_at__isnull=self.value() != "1")


@admin.register(Agent)
class AgentAdmin(KillSwitch, SavesByAction, ShowsChecks, EmbedPages, BulkPages):
    changed_by = Role.EDITOR
    form = AgentForm
    inlines = (VersionInline,)
    list_display = (
        "name",
        "tenant",
        "status_shown",
        "model_shown",
        "version_shown",
        "check_shown",
        "updated_at",
    )
    list_filter = (
        ("tenant", AutocompleteSelectFilter),
        ("status", ChoicesCheckboxFilter),
        DeletedFilter,
    )
    search_fields = ("name", "slug", "type")
    autocomplete_fields = ("tenant",)
    ordering = ("-pk",)
    change_form_outer_before_template = "agents/admin/agent.html"
    change_form_before_template = "agents/admin/etag.html"
    list_before_template = "agents/admin/agents.html"
    fieldsets = (
        (
            None,
            {"fields": (("name", "tenant"), ("type", "slug"), "description", "status")},
        ),
        *CONFIG_FIELDSETS,
        (_("This change"), {"fields": (("note", "hold"),)}),
    )
    verbs = (
        CHECK,
        Verb(
            "publish",
            _("Publish the newest version"),
            "publish",
            lambda agent, actor: AgentPublishAction(agent_id=agent.pk, actor=actor),
            lambda agent: agent.deleted_at is None and agent.published_id != agent.version_id,
            variant="primary",
        ),
        Verb(
            "duplicate",
            _("Duplicate"),
            "content_copy",
            lambda agent, actor: AgentDuplicateAction(agent_id=agent.pk, actor=actor),
            lambda agent: agent.deleted_at is None,
        ),
        Verb(
            "restore",
            _("Restore"),
            "restore_from_trash",
            lambda agent, actor: AgentRestoreAction(agent_id=agent.pk, actor=actor),
            lambda agent: agent.deleted_at is not None,
            variant="primary",
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Agent]:
        """What runs have left leads to deleted agents too; lists to choose from do not."""
        rows: QuerySet[Agent] = super().get_queryset(request)
        rows = rows.select_related("tenant__tier", "version", "published", "template")
        match = request.resolver_match
        return rows.filter(deleted_at=None) if match and match.url_name == "autocomplete" else rows

    def get_inlines(self, request: HttpRequest, obj: Agent | None = None) -> tuple[Any, ...]:
        return self.inlines if obj else ()

    def get_readonly_fields(self, request: HttpRequest, obj: Agent | None = None) -> tuple[str, ...]:
        return ("tenant", *CHECKS) if obj else ()

    def get_fieldsets(self, request: HttpRequest, obj: Agent | None = None) -> Any:
        """What is said about a change is asked only where something changes."""
        *shown, change = super().get_fieldsets(request, obj)
        if obj is None:
            return shown
        return [*shown, FIELDSET, change] if self.has_change_permission(request, obj) else [*shown, FIELDSET]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(super().has_change_permission(request, obj)) and not (obj and obj.deleted_at)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(super().has_delete_permission(request, obj)) and not (obj and obj.deleted_at)

    def view_on_site(self, obj: Agent) -> str:
        """Its chat page."""
        return f"/chat/{obj.pk}"

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        context = {"may_import": self.has_add_permission(request), **(extra_context or {})}
        return super().changelist_view(request, context)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        refusal = getattr(request, "refusal", None)
        if isinstance(refusal, StaleVersion):
            context["meanwhile"] = shown_diff(refusal.details.get("diff", []))
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Agent, form: Any, change: bool) -> None:
        fields: dict[str, Any] = {
            "name": obj.name,
            "type": obj.type,
            "description": obj.description,
            "slug": obj.slug or None,
            "draft": obj.status == Agent.Status.DRAFT,
        }
        actor = actor_of(request)
        with tenant_scope(obj.tenant_id):
            if not change:
                obj.pk = execute(AgentCreateAction(**fields, config=form.config, actor=actor)).agent_id
            else:
                # What the person has not touched is left as it is, line ends and all.
                shown = {"draft": "status"}
                fields = {
                    name: value
                    for name, value in fields.items()
                    if shown.get(name, name) in form.changed_data
                }
                about = {"note": form.cleaned_data["note"], "publish": not form.cleaned_data["hold"]}
                action = AgentUpdateAction(
                    **fields,
                    **about,
                    config=form.changed_config(),
                    agent_id=obj.pk,
                    actor=actor,
                    if_match=form.seen,
                )
                execute(action)
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

    def may_switch(self, request: HttpRequest, obj: Agent) -> bool:
        return obj.deleted_at is None and super().may_switch(request, obj)

    def suspend_action(self, obj: Agent, reason: str, actor: str) -> Action[Any]:
        return AgentSuspendAction(agent_id=obj.pk, reason=reason, actor=actor)

    def unsuspend_action(self, obj: Agent, actor: str) -> Action[Any]:
        return AgentUnsuspendAction(agent_id=obj.pk, actor=actor)

    def done(self, obj: Agent, verb: Verb, result: Any) -> Any:
        if verb.name == "duplicate":
            copy = link("admin:agents_agent_change", result.name, result.agent_id)
            return format_html("{} {}", _("Duplicated as"), copy)
        return super().done(obj, verb, result)

    @display(
        _("status"),
        ordering="status",
        label={
            Agent.Status.PUBLISHED: "success",
            Agent.Status.DRAFT: "warning",
            "deleted": "danger",
            "suspended": "danger",
        },
    )
    def status_shown(self, agent: Agent) -> tuple[str, Any]:
        if agent.deleted_at is not None:
            return "deleted", _("deleted")
        if agent.suspended_at is not None:
            return "suspended", _("switched off")
        return agent.status, agent.get_status_display()

    @display(_("model"))
    def model_shown(self, agent: Agent) -> str:
        assert agent.version is not None
        return f"{agent.version.config['provider']} / {agent.version.config['model']}"

    @display(_("version"))
    def version_shown(self, agent: Agent) -> Any:
        if agent.published is not None and agent.published_id != agent.version_id:
            return format_html("{} ({} {})", agent.version, PUBLISHED, agent.published)
        return str(agent.version)
