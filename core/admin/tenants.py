"""Tenants and tiers."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminTextareaWidget

from core.admin.console import Console, display, link
from core.admin.forms import LinesField
from core.models import Tenant, Tier


class TierForm(forms.ModelForm):  # type: ignore[type-arg]
    allowed_models = LinesField(
        label=_("Allowed models"),
        required=False,
        widget=UnfoldAdminTextareaWidget({"rows": 5}),
        help_text=_("One name a line; an empty list allows all models."),
    )


@admin.register(Tier)
class TierAdmin(Console):
    form = TierForm
    list_display = (
        "name",
        "slug",
        "models_shown",
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
        (_("Limits"), {"fields": ("allowed_models", "priority_ceiling", "uses_environment_keys")}),
        (_("Queues"), {"fields": (("weight", "max_running"),)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Tier]:
        rows: QuerySet[Tier] = super().get_queryset(request)
        return rows.annotate(tenant_count=Count("tenants"))

    def get_readonly_fields(self, request: HttpRequest, obj: Tier | None = None) -> tuple[str, ...]:
        return ("slug",) if obj else ()

    @display(_("allowed models"))
    def models_shown(self, tier: Tier) -> Any:
        return ", ".join(tier.allowed_models) or _("all")

    @display(_("tenants"))
    def tenants_shown(self, tier: Any) -> Any:
        return link("admin:core_tenant_changelist", tier.tenant_count, query=f"?tier__slug__exact={tier.pk}")


@admin.register(Tenant)
class TenantPage(Console):
    """A tenant is not deleted here: with it would go its agents, conversations and usage."""

    list_display = ("id", "name", "tier", "created_at")
    list_select_related = ("tier",)
    list_filter = ("tier",)
    search_fields = ("id", "name")
    ordering = ("id",)
    fields = ("id", "name", "tier")

    def get_readonly_fields(self, request: HttpRequest, obj: Tenant | None = None) -> tuple[str, ...]:
        return ("id",) if obj else ()

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
