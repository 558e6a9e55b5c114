"""What provider calls consumed."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Sum
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    ChoicesCheckboxFilter,
    FieldTextFilter,
    RangeDateFilter,
)

from core.admin.console import Console, LookOnly, counted, display, link, shown_dollars
from core.models import UsageRecord

TOKENS = {
    "prompt_tokens": _("prompt tokens"),
    "completion_tokens": _("completion tokens"),
    "cached_tokens": _("cached tokens"),
}


@admin.register(UsageRecord)
class UsageAdmin(LookOnly, Console):
    list_display = (
        "created_at",
        "tenant",
        "provider",
        "model",
        *TOKENS,
        "accuracy",
        "cost_shown",
        "task_shown",
    )
    list_select_related = ("tenant",)
    list_filter = (
        ("tenant", AutocompleteSelectFilter),
        ("created_at", RangeDateFilter),
        ("accuracy", ChoicesCheckboxFilter),
        ("provider", FieldTextFilter),
        ("model", FieldTextFilter),
    )
    list_before_template = "core/admin/usage_totals.html"
    ordering = ("-pk",)
    fields = (
        ("tenant", "created_at"),
        ("provider", "model", "accuracy"),
        tuple(TOKENS),
        ("cost_shown", "price_shown"),
        "reserved_tokens",
        ("task_shown", "attempt", "call"),
        "agent_shown",
        ("session_id", "end_user"),
    )

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """The sums are those of what the filters leave, not of the page."""
        response = super().changelist_view(request, extra_context)
        context = getattr(response, "context_data", None) or {}
        if "cl" in context:
            rows = context["cl"].queryset.order_by()
            sums = rows.aggregate(**{f"{name}_sum": Sum(name) for name in (*TOKENS, "cost")})
            context["totals"] = [
                *((label, counted(sums[f"{name}_sum"] or 0)) for name, label in TOKENS.items()),
                (_("cost"), shown_dollars(sums["cost_sum"])),
            ]
        return response

    @display(_("cost"), ordering="cost")
    def cost_shown(self, record: UsageRecord) -> str:
        return shown_dollars(record.cost)

    @display(_("price"))
    def price_shown(self, record: UsageRecord) -> Any:
        if record.price_id is None:
            return _("unknown")
        return link("admin:core_modelprice_change", record.price_id, record.price_id)

    @display(_("task"))
    def task_shown(self, record: UsageRecord) -> Any:
        if record.task_id is None:
            return "-"
        return link("admin:core_task_change", record.task_id, record.task_id)

    @display(_("agent"))
    def agent_shown(self, record: UsageRecord) -> Any:
        return link("admin:agents_agent_change", record.agent_id, record.agent_id)
