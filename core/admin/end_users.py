"""The secrets of end users' tokens: made here, shown once, revoked for good."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter

from core.actions.bus import execute
from core.actions.end_users import EndUserSecretCreateAction, EndUserSecretRevokeAction
from core.admin.console import RefusableForm, SavesByAction, Verb, VerbAdmin, display
from core.models import EndUserSecret
from core.models.membership import Role
from core.tenancy import tenant_scope


@admin.register(EndUserSecret)
class EndUserSecretAdmin(SavesByAction, VerbAdmin):
    changed_by = Role.OWNER
    form = RefusableForm
    list_display = ("name", "prefix_shown", "tenant", "living", "created_at")
    list_select_related = ("tenant",)
    list_filter = (("tenant", AutocompleteSelectFilter), ("revoked_at", admin.EmptyFieldListFilter))
    search_fields = ("name", "prefix")
    autocomplete_fields = ("tenant",)
    ordering = ("-created_at",)
    add_fieldsets = ((None, {"fields": ("tenant", "name")}),)
    fields = ("tenant", "name", "prefix_shown", "created_at", "revoked_at")
    verbs = (
        Verb(
            "revoke",
            _("Revoke"),
            "key_off",
            lambda secret, actor: EndUserSecretRevokeAction(secret_id=secret.prefix),
            lambda secret: secret.revoked_at is None,
            variant="danger",
        ),
    )

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A secret is never edited: tokens are signed with it."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: EndUserSecret, form: Any, change: bool) -> None:
        with tenant_scope(obj.tenant_id):
            made = execute(EndUserSecretCreateAction(name=obj.name))
            obj.pk = EndUserSecret.objects.get(prefix=made.secret_id).pk
        obj.refresh_from_db()
        text = gettext("The secret, shown this once: %(secret)s") % {"secret": made.secret}
        self.message_user(request, text, messages.WARNING)

    @display(_("prefix"))
    def prefix_shown(self, secret: EndUserSecret) -> str:
        return f"nbs_{secret.prefix}_…"

    @display(_("status"), label={"revoked": "danger", "living": "success"})
    def living(self, secret: EndUserSecret) -> Any:
        return ("revoked", _("revoked")) if secret.revoked_at else ("living", _("valid"))
