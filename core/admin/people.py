"""The people of the console, and which tenants they belong to."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesCheckboxFilter
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminTextInputWidget

from core.actions.bus import execute
from core.actions.people import MembershipCreateAction, MembershipDeleteAction, MembershipUpdateAction
from core.admin.console import Console, RefusableForm, SavesByAction, display
from core.admin.roles import is_operator
from core.models import Membership
from core.models.membership import Role
from core.tenancy import tenant_scope

admin.site.unregister(User)
admin.site.unregister(Group)


class OperatorsOnly:
    """Whoever makes people could make themselves an operator."""

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        """Who may not look learns no more from what is there than from what is not."""
        if not is_operator(request.user):
            raise PermissionDenied
        return super().history_view(request, object_id, extra_context)  # type: ignore[misc]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return is_operator(request.user)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_operator(request.user)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return is_operator(request.user)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_operator(request.user)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_operator(request.user)


@admin.register(User)
class PersonAdmin(OperatorsOnly, UserAdmin, ModelAdmin):  # type: ignore[misc, type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class PeopleGroupAdmin(OperatorsOnly, GroupAdmin, ModelAdmin):  # type: ignore[misc]
    pass


class MembershipForm(RefusableForm):
    username = forms.CharField(
        label=_("Person"),
        max_length=150,
        widget=UnfoldAdminTextInputWidget,
        help_text=_("The exact name by which the person enters the console; the operator makes new ones."),
    )


@admin.register(Membership)
class MembershipAdmin(SavesByAction, Console):
    seen_by = Role.OWNER
    changed_by = Role.OWNER

    form = MembershipForm
    list_display = ("person_shown", "tenant", "role", "created_at")
    list_select_related = ("tenant", "user")
    list_filter = (("tenant", AutocompleteSelectFilter), ("role", ChoicesCheckboxFilter))
    search_fields = ("user__username",)
    autocomplete_fields = ("tenant",)
    ordering = ("tenant", "user__username")
    add_fieldsets = ((None, {"fields": ("tenant", "username", "role")}),)
    fieldsets = ((None, {"fields": ("tenant", "person_shown", "role", "created_at")}),)

    def get_fieldsets(self, request: HttpRequest, obj: Membership | None = None) -> Any:
        return self.fieldsets if obj else self.add_fieldsets

    def get_readonly_fields(self, request: HttpRequest, obj: Membership | None = None) -> tuple[str, ...]:
        return ("tenant", "person_shown", "created_at") if obj else ()

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        if obj is not None:
            form.base_fields.pop("username", None)
        return form

    def save_model(self, request: HttpRequest, obj: Membership, form: Any, change: bool) -> None:
        role = Role(obj.role)
        with tenant_scope(obj.tenant_id):
            if change:
                execute(MembershipUpdateAction(row_id=obj.pk, role=role))
            else:
                wanted = MembershipCreateAction(username=form.cleaned_data["username"], role=role)
                obj.pk = execute(wanted).row_id
        obj.refresh_from_db()

    def delete_model(self, request: HttpRequest, obj: Membership) -> None:
        with tenant_scope(obj.tenant_id):
            execute(MembershipDeleteAction(row_id=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Membership]) -> None:
        for row in queryset:
            self.delete_model(request, row)

    @display(_("person"), ordering="user__username")
    def person_shown(self, row: Membership) -> str:
        return row.user.get_username()
