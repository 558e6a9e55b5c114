"""API keys: made here, shown once, revoked for good."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from core.actions.bus import execute
from core.actions.keys import ApiKeyCreateAction, ApiKeyRevokeAction
from core.admin.console import RefusableForm, SavesByAction, Verb, VerbAdmin, display
from core.models import ApiKey
from core.models.access import SCOPES
from core.models.membership import Role
from core.tenancy import tenant_scope


class KeyForm(RefusableForm):
    scopes = forms.MultipleChoiceField(
        label=_("Scopes"),
        choices=[(scope, scope) for scope in SCOPES],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text=_("What the key may read and write."),
    )


@admin.register(ApiKey)
class ApiKeyAdmin(SavesByAction, VerbAdmin):
    changed_by = Role.OWNER
    form = KeyForm
    list_display = ("name", "prefix_shown", "tenant", "living", "scopes_shown", "created_at")
    list_select_related = ("tenant",)
    list_filter = (("tenant", AutocompleteSelectFilter), ("revoked_at", admin.EmptyFieldListFilter))
    search_fields = ("name", "prefix")
    autocomplete_fields = ("tenant",)
    ordering = ("-created_at",)
    add_fieldsets = ((None, {"fields": ("tenant", "name", "scopes")}),)
    fields = ("tenant", "name", "prefix_shown", "scopes_shown", "created_at", "revoked_at")
    verbs = (
        Verb(
            "revoke",
            _("Revoke"),
            "key_off",
            lambda key, actor: ApiKeyRevokeAction(row_id=key.pk),
            lambda key: key.revoked_at is None,
            variant="danger",
        ),
    )

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A key is never edited: software that holds it counts on what it opens."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        with tenant_scope(obj.tenant_id):
            created = execute(ApiKeyCreateAction(name=obj.name, scopes=tuple(obj.scopes)))
        obj.pk = created.row_id
        obj.refresh_from_db()
        text = gettext("The key, shown this once: %(key)s") % {"key": created.key}
        self.message_user(request, text, messages.WARNING)

    @display(_("prefix"))
    def prefix_shown(self, key: ApiKey) -> str:
        return f"nbk_{key.prefix}_…"

    @display(_("scopes"))
    def scopes_shown(self, key: ApiKey) -> Any:
        return _("all") if set(key.scopes) == set(SCOPES) else ", ".join(key.scopes)

    @display(_("status"), label={"revoked": "danger", "living": "success"})
    def living(self, key: ApiKey) -> Any:
        return ("revoked", _("revoked")) if key.revoked_at else ("living", _("valid"))
