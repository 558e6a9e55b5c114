"""Tenants and tiers: what a tier allows, and what would no longer fit."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldBooleanSwitchWidget

from core.actions.base import Action
from core.actions.bus import execute
from core.actions.suspension import TenantSuspendAction, TenantUnsuspendAction
from core.actions.tiers import (
    TenantCreateAction,
    TenantUpdateAction,
    TierCreateAction,
    TierDeleteAction,
    TierFields,
    TierUpdateAction,
)
from core.admin.console import Console, SavesByAction, display, link
from core.admin.forms import LinesField
from core.admin.roles import is_operator
from core.admin.switch import KillSwitch
from core.errors import NoobleError
from core.models import Tenant, Tier
from core.tiers import Misfit, misfits

SHOWN = 20  # misfits that are named


class ConfirmedForm(forms.ModelForm):  # type: ignore[type-arg]
    """Names what would no longer fit, and saves it only once the person has said yes."""

    refusal: NoobleError | None = None
    confirmed = forms.BooleanField(
        label=_("Save it all the same"),
        required=False,
        widget=forms.HiddenInput,
        help_text=_(
            "What is listed above keeps working as it is and carries a warning; new versions and new agents "
            "must fit."
        ),
    )

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if self.refusal is not None:
            self.add_error(None, " ".join([str(self.refusal), *map(str, self.refusal.details.values())]))
        elif not self.errors and not self.instance._state.adding and not cleaned.get("confirmed"):
            found = self.new_misfits(cleaned)
            if found:
                self.fields["confirmed"].widget = UnfoldBooleanSwitchWidget()
                self.add_error(None, _told(found))
        return cleaned

    def new_misfits(self, cleaned: dict[str, Any]) -> list[Misfit]:
        """What fits now and would not any more."""
        raise NotImplementedError


def _told(found: list[Misfit]) -> list[str]:
    count = len(found)
    head = ngettext(
        "%(count)s thing would no longer fit:", "%(count)s things would no longer fit:", count
    ) % {"count": count}
    lines = [head, *map(str, found[:SHOWN])]
    if count > SHOWN:
        lines.append(gettext("… and %(count)s more") % {"count": count - SHOWN})
    return lines


class TierForm(ConfirmedForm):
    allowed_models = LinesField(
        label=_("Allowed models"),
        required=False,
        widget=UnfoldAdminTextareaWidget({"rows": 5}),
        help_text=_("One name a line; an empty list allows all models."),
    )

    def new_misfits(self, cleaned: dict[str, Any]) -> list[Misfit]:
        present = Tier.objects.get(pk=self.instance.pk)
        wanted = Tier(slug=present.slug, **{name: cleaned[name] for name in TierFields.model_fields})
        tenants = Tenant.objects.filter(tier=present)
        known = set(misfits(present, tenants))
        return [misfit for misfit in misfits(wanted, tenants) if misfit not in known]


@admin.register(Tier)
class TierAdmin(SavesByAction, Console):
    form = TierForm
    list_display = (
        "name",
        "slug",
        "models_shown",
        "max_agents",
        "priority_ceiling",
        "weight",
        "max_running",
        "uses_environment_keys",
        "tenants_shown",
    )
    search_fields = ("slug", "name")
    ordering = ("slug",)
    fieldsets = (
        (None, {"fields": ("name", "slug")}),
        (_("Agents"), {"fields": ("allowed_models", ("max_agents", "max_webhooks"))}),
        (_("Runs"), {"fields": (("max_run_seconds", "max_output_tokens"), "priority_ceiling")}),
        (_("Providers"), {"fields": (("uses_environment_keys", "own_providers"),)}),
        (
            _("Limits a minute"),
            {
                "fields": (
                    ("ip_requests_per_minute", "ip_connects_per_minute"),
                    ("session_messages_per_minute", "agent_requests_per_minute"),
                    "tenant_requests_per_minute",
                )
            },
        ),
        (_("Queues"), {"fields": (("weight", "max_running"), "max_waiting", "confirmed")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Tier]:
        rows: QuerySet[Tier] = super().get_queryset(request)
        return rows.annotate(tenant_count=Count("tenants"))

    def get_readonly_fields(self, request: HttpRequest, obj: Tier | None = None) -> tuple[str, ...]:
        return ("slug",) if obj else ()

    def save_model(self, request: HttpRequest, obj: Tier, form: Any, change: bool) -> None:
        fields = {name: getattr(obj, name) for name in TierFields.model_fields}
        kind = TierUpdateAction if change else TierCreateAction
        execute(kind(slug=obj.slug, **fields))

    def delete_model(self, request: HttpRequest, obj: Tier) -> None:
        execute(TierDeleteAction(slug=obj.slug))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Tier]) -> None:
        for tier in queryset:
            self.delete_model(request, tier)

    @display(_("allowed models"))
    def models_shown(self, tier: Tier) -> Any:
        return ", ".join(tier.allowed_models) or _("all")

    @display(_("tenants"))
    def tenants_shown(self, tier: Any) -> Any:
        return link("admin:core_tenant_changelist", tier.tenant_count, query=f"?tier__slug__exact={tier.pk}")


class TenantForm(ConfirmedForm):
    def new_misfits(self, cleaned: dict[str, Any]) -> list[Misfit]:
        tenants = Tenant.objects.filter(pk=self.instance.pk)
        present = tenants.select_related("tier").get().tier
        known = set(misfits(present, tenants))
        return [misfit for misfit in misfits(cleaned["tier"], tenants) if misfit not in known]


@admin.register(Tenant)
class TenantPage(KillSwitch, SavesByAction, Console):
    """A tenant is not deleted here: with it would go its agents, conversations and usage."""

    change_form_outer_before_template = "core/admin/switched.html"

    form = TenantForm
    list_display = ("id", "name", "tier", "status_shown", "created_at")
    list_select_related = ("tier",)
    list_filter = ("tier",)
    search_fields = ("id", "name")
    ordering = ("id",)
    fields = ("id", "name", "tier", "retention_days", "confirmed")

    def get_list_filter(self, request: HttpRequest) -> tuple[str, ...]:
        """What tiers there are is the operators' business."""
        return self.list_filter if is_operator(request.user) else ()

    def get_readonly_fields(self, request: HttpRequest, obj: Tenant | None = None) -> tuple[str, ...]:
        return ("id",) if obj else ()

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def may_switch(self, request: HttpRequest, obj: Tenant) -> bool:
        return is_operator(request.user)

    def suspend_action(self, obj: Tenant, reason: str, actor: str) -> Action[Any]:
        return TenantSuspendAction(tenant_id=obj.pk, reason=reason)

    def unsuspend_action(self, obj: Tenant, actor: str) -> Action[Any]:
        return TenantUnsuspendAction(tenant_id=obj.pk)

    @display(_("status"), label={"suspended": "danger", "active": "success"})
    def status_shown(self, tenant: Tenant) -> Any:
        return ("suspended", _("switched off")) if tenant.suspended_at else ("active", _("switched on"))

    def save_model(self, request: HttpRequest, obj: Tenant, form: Any, change: bool) -> None:
        kind = TenantUpdateAction if change else TenantCreateAction
        fields = {"name": obj.name, "tier": obj.tier_id, "retention_days": obj.retention_days}
        execute(kind(tenant_id=obj.pk, **fields))
