"""Tenants' providers in the console: a key goes in and never comes out."""

from __future__ import annotations

import functools
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.widgets import UnfoldAdminPasswordWidget

from core.actions.bus import execute
from core.admin.console import Console, RefusableForm, SavesByAction, display, moment
from core.errors import NoobleError
from core.models import ProviderCredential
from core.models.membership import Role
from core.tenancy import tenant_scope
from execution.actions import (
    ProviderCheckAction,
    ProviderCreateAction,
    ProviderDeleteAction,
    ProviderUpdateAction,
)
from execution.budget_admin import BudgetAdmin
from execution.errors import RunError

__all__ = ["BudgetAdmin", "ProviderAdmin"]


class ProviderForm(RefusableForm):
    api_key = forms.CharField(
        label=_("API key"),
        required=False,
        widget=UnfoldAdminPasswordWidget(render_value=False, attrs={"autocomplete": "new-password"}),
        help_text=_("Empty: the present one stays. It is shown to nobody."),
    )


@admin.register(ProviderCredential)
class ProviderAdmin(SavesByAction, Console):
    changed_by = Role.OWNER
    form = ProviderForm
    list_display = ("name", "tenant", "base_url", "key_shown", "check_shown", "updated_at")
    list_select_related = ("tenant",)
    list_filter = (("tenant", AutocompleteSelectFilter),)
    search_fields = ("name",)
    autocomplete_fields = ("tenant",)
    ordering = ("tenant", "name")
    fields = (("name", "tenant"), "base_url", ("api_key", "key_shown"), "check_shown")

    def get_readonly_fields(
        self, request: HttpRequest, obj: ProviderCredential | None = None
    ) -> tuple[str, ...]:
        shown = ("key_shown", "check_shown")
        return ("name", "tenant", *shown) if obj else shown

    def save_model(self, request: HttpRequest, obj: ProviderCredential, form: Any, change: bool) -> None:
        fields: dict[str, Any] = {"name": obj.name, "base_url": obj.base_url or None}
        if form.cleaned_data["api_key"]:
            fields["api_key"] = form.cleaned_data["api_key"]
        kind = ProviderUpdateAction if change else ProviderCreateAction
        tenant_id = obj.tenant_id
        with tenant_scope(tenant_id):
            execute(kind(**fields))
        # Nobody is asked while a transaction is open.
        transaction.on_commit(functools.partial(self._check, request, tenant_id, obj.name))
        saved = ProviderCredential.unscoped.get(tenant_id=tenant_id, name=obj.name)
        obj.pk = saved.pk
        obj.refresh_from_db()

    def _check(self, request: HttpRequest, tenant_id: str, name: str) -> None:
        with tenant_scope(tenant_id):
            found = execute(ProviderCheckAction(name=name)).check
        if found is not None and found.error is not None:
            text = gettext("%(name)s was asked for its models: %(error)s")
            words = {"name": name, "error": found.error.message}
            self.message_user(request, text % words, messages.WARNING)

    def delete_model(self, request: HttpRequest, obj: ProviderCredential) -> None:
        with tenant_scope(obj.tenant_id):
            execute(ProviderDeleteAction(name=obj.name))

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        """A refusal leads back to the page it came from."""
        try:
            return super().delete_view(request, object_id, extra_context)
        except NoobleError as error:
            return self._refused(request, error)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        try:
            return super().changelist_view(request, extra_context)
        except NoobleError as error:
            return self._refused(request, error)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ProviderCredential]) -> None:
        for row in queryset:
            self.delete_model(request, row)

    def _refused(self, request: HttpRequest, error: NoobleError) -> HttpResponse:
        self.message_user(request, " ".join([str(error), *_names(error)]), messages.ERROR)
        return HttpResponseRedirect(reverse("admin:core_providercredential_changelist"))

    @display(_("key"))
    def key_shown(self, row: ProviderCredential) -> str:
        return row.key_shown or "-"

    @display(_("last check"))
    def check_shown(self, row: ProviderCredential) -> Any:
        if row.checked_at is None:
            return "-"
        result = RunError(row.check_error) if row.check_error else _("The provider answers.")
        return f"{result} ({moment(row.checked_at)})"


def _names(error: NoobleError) -> list[str]:
    """Whom a refusal names."""
    return [str(name) for names in error.details.values() for name in names if isinstance(names, list)]
