"""What models cost: a price is never changed, a new one takes its place."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesCheckboxFilter, FieldTextFilter

from core.actions.bus import execute
from core.actions.prices import PriceSetAction, PriceWithdrawAction
from core.admin.console import Console, RefusableForm, SavesByAction, display, moment
from core.budgets import dollars_text
from core.models import ModelPrice

PRICES = ("prompt", "completion", "cached")


class PriceForm(RefusableForm):
    """Shows the present price; what is saved is the next one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["valid_from"] = None
        for name in PRICES:
            if isinstance(self.initial.get(name), Decimal):
                self.initial[name] = dollars_text(self.initial[name])


@admin.register(ModelPrice)
class PriceAdmin(SavesByAction, Console):
    """Of operators. Who is of a tenant sees its own prices."""

    form = PriceForm
    list_display = (
        "provider",
        "model",
        "tenant",
        "from_prompt_tokens",
        "prompt_shown",
        "completion_shown",
        "cached_shown",
        "valid_from_shown",
        "source",
        "state",
    )
    list_select_related = ("tenant",)
    list_filter = (
        ("tenant", AutocompleteSelectFilter),
        ("provider", FieldTextFilter),
        ("source", ChoicesCheckboxFilter),
        ("withdrawn_at", admin.EmptyFieldListFilter),
    )
    search_fields = ("model",)
    autocomplete_fields = ("tenant",)
    ordering = ("provider", "model", "from_prompt_tokens", "-valid_from", "-pk")
    fields = (("provider", "model"), ("tenant", "from_prompt_tokens"), PRICES, "valid_from")

    def get_readonly_fields(self, request: HttpRequest, obj: ModelPrice | None = None) -> tuple[str, ...]:
        return ("provider", "model", "tenant", "from_prompt_tokens") if obj else ()

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "valid_from" and field is not None:
            field.required, field.help_text = False, _("Empty: from now on.")
        return field

    def save_model(self, request: HttpRequest, obj: ModelPrice, form: Any, change: bool) -> None:
        """Under the same names: the row that was there stays, since calls were made by it."""
        made = execute(
            PriceSetAction(
                tenant_id=obj.tenant_id,
                provider=obj.provider,
                model=obj.model,
                from_prompt_tokens=obj.from_prompt_tokens,
                prompt=obj.prompt,
                completion=obj.completion,
                cached=obj.cached,
                valid_from=form.cleaned_data["valid_from"],
            )
        )
        obj.pk = made.row_id
        obj.refresh_from_db()

    def delete_model(self, request: HttpRequest, obj: ModelPrice) -> None:
        execute(PriceWithdrawAction(row_id=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ModelPrice]) -> None:
        for price in queryset:
            self.delete_model(request, price)

    @display(_("prompt"), ordering="prompt")
    def prompt_shown(self, price: ModelPrice) -> str:
        return dollars_text(price.prompt)

    @display(_("completion"), ordering="completion")
    def completion_shown(self, price: ModelPrice) -> str:
        return dollars_text(price.completion)

    @display(_("cached prompt"), ordering="cached")
    def cached_shown(self, price: ModelPrice) -> str:
        return dollars_text(price.cached) if price.cached is not None else "-"

    @display(_("valid from"), ordering="valid_from")
    def valid_from_shown(self, price: ModelPrice) -> str:
        return moment(price.valid_from)

    @display(_("state"), label={"valid": "success", "coming": "info", "withdrawn": "danger"})
    def state(self, price: ModelPrice) -> tuple[str, Any]:
        if price.withdrawn_at is not None:
            return "withdrawn", _("withdrawn")
        if price.valid_from > timezone.now():
            return "coming", _("to come")
        return "valid", _("valid")
