"""Budgets in the console, and what their present periods have seen."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesCheckboxFilter, FieldTextFilter

from core.actions.bus import execute
from core.admin.console import (
    Console,
    RefusableForm,
    SavesByAction,
    counted,
    display,
    link,
    moment,
    shown_dollars,
)
from core.admin.roles import is_operator
from core.budgets import dollars_text, period_end
from core.models import Budget, BudgetUse
from core.models.membership import Role
from core.tenancy import tenant_scope
from execution.budget_actions import BudgetCreateAction, BudgetDeleteAction, BudgetUpdateAction

LIMITS = ("limit_tokens", "limit_cost")
USES = 50  # that a budget's page shows, the newest first


class UseInline(TabularInline):  # type: ignore[misc]
    """Read only: the ledger writes these."""

    model = BudgetUse
    verbose_name_plural = _("Use")
    hide_title = True
    fields = readonly_fields = ("begins_shown", "ends_shown", "end_user", "tokens", "cost", "reserved")
    ordering = ("-begins_at", "-spent_tokens")
    max_num = 0
    per_page = USES
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True

    @display(_("begins at"))
    def begins_shown(self, use: BudgetUse) -> str:
        return moment(use.begins_at)

    @display(_("ends at"))
    def ends_shown(self, use: BudgetUse) -> str:
        return moment(period_end(use.budget.period, use.begins_at))

    @display(_("tokens"))
    def tokens(self, use: BudgetUse) -> str:
        return counted(use.spent_tokens)

    @display(_("cost"))
    def cost(self, use: BudgetUse) -> str:
        return shown_dollars(use.spent_cost)

    @display(_("reserved"))
    def reserved(self, use: BudgetUse) -> str:
        return counted(use.held_tokens)


class BudgetForm(RefusableForm):
    """Limits are the only thing of a budget that changes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.initial.get("limit_cost"), Decimal):
            self.initial["limit_cost"] = dollars_text(self.initial["limit_cost"])


@admin.register(Budget)
class BudgetAdmin(SavesByAction, Console):
    """Owners bound their own tenant; what an operator has locked is the operator's."""

    changed_by = Role.OWNER
    form = BudgetForm
    list_display = ("subject", "tenant", "agent_shown", "end_user", "period", "tokens_shown", "cost_shown")
    list_select_related = ("tenant",)
    list_filter = (
        ("tenant", AutocompleteSelectFilter),
        ("subject", ChoicesCheckboxFilter),
        ("period", ChoicesCheckboxFilter),
        ("end_user", FieldTextFilter),
    )
    autocomplete_fields = ("tenant",)
    ordering = ("tenant", "pk")
    inlines = (UseInline,)

    def get_fields(self, request: HttpRequest, obj: Budget | None = None) -> list[Any]:
        locked = ["locked"] if is_operator(request.user) else []
        return ["tenant", ("subject", "period"), ("agent_id", "end_user"), LIMITS, *locked]

    def get_readonly_fields(self, request: HttpRequest, obj: Budget | None = None) -> tuple[str, ...]:
        return ("tenant", "subject", "period", "agent_id", "end_user") if obj else ()

    def get_inlines(self, request: HttpRequest, obj: Budget | None) -> Any:
        return self.inlines if obj else ()

    def save_model(self, request: HttpRequest, obj: Budget, form: Any, change: bool) -> None:
        limits = {name: getattr(obj, name) for name in LIMITS}
        by_operator = is_operator(request.user)
        with tenant_scope(obj.tenant_id):
            if change:
                locked = obj.locked if by_operator else None
                execute(
                    BudgetUpdateAction(budget_id=obj.pk, locked=locked, by_operator=by_operator, **limits)
                )
            else:
                made = execute(
                    BudgetCreateAction(
                        subject=obj.subject,
                        agent_id=obj.agent_id,
                        end_user=obj.end_user or None,
                        period=obj.period,
                        locked=obj.locked,
                        by_operator=by_operator,
                        **limits,
                    )
                )
                obj.pk = made.budget_id
        obj.refresh_from_db()

    def delete_model(self, request: HttpRequest, obj: Budget) -> None:
        with tenant_scope(obj.tenant_id):
            execute(BudgetDeleteAction(budget_id=obj.pk, by_operator=is_operator(request.user)))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Budget]) -> None:
        for budget in queryset:
            self.delete_model(request, budget)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        may = super().has_delete_permission(request, obj)
        return may and (obj is None or not obj.locked or is_operator(request.user))

    @display(_("agent"))
    def agent_shown(self, budget: Budget) -> Any:
        if budget.agent_id is None:
            return "-"
        return link("admin:agents_agent_change", str(budget.agent_id)[:8], budget.agent_id)

    @display(_("tokens"), ordering="limit_tokens")
    def tokens_shown(self, budget: Budget) -> str:
        return counted(budget.limit_tokens) if budget.limit_tokens is not None else "-"

    @display(_("US dollars"), ordering="limit_cost")
    def cost_shown(self, budget: Budget) -> str:
        return shown_dollars(budget.limit_cost) if budget.limit_cost is not None else "-"
