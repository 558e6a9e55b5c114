"""What people of the console see and do: superusers everything, others what their tenants' roles say.

Each page names the roles that see and change its table (`Console.seen_by`, `Console.changed_by`). Who
is asked for a permission looks there: Django's own groups and permissions say nothing about a tenant's
rows, and go on for the rest. The database is told whose rows the person may see, for the whole request,
and for a page those that it takes the role for: what asks for too much gets nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from core.models import Membership, Tenant
from core.models.membership import Role
from core.postgres.cursors import tenant_column
from core.tenancy import across_tenants, tenants_scope

_SAFE = ("GET", "HEAD", "OPTIONS")


def is_operator(user: Any) -> bool:
    """Whether somebody sees and does everything."""
    return bool(user.is_active and user.is_superuser)


def roles_of(user: Any) -> dict[str, Role]:
    """The tenants that a person belongs to; asked for once a request, as the user object is."""
    found: dict[str, Role] | None = user.__dict__.get("_roles")
    if found is None:
        with across_tenants():
            rows = Membership.unscoped.filter(user_id=user.pk).values_list("tenant_id", "role")
            found = {tenant_id: Role(role) for tenant_id, role in rows}
        user._roles = found
    return found


def has_role(user: Any, needed: Role | None, tenant_id: str | None = None) -> bool:
    """Whether the person has that role at the tenant, or at any; None is the role that nobody has."""
    if is_operator(user):
        return True
    if needed is None or not (user.is_active and user.is_staff):
        return False
    roles = roles_of(user)
    held = roles.values() if tenant_id is None else [roles[tenant_id]] if tenant_id in roles else []
    return any(role.includes(needed) for role in held)


def tenant_of(obj: Any) -> str | None:
    """Whose the row is; nothing for what is everybody's."""
    return str(obj.pk) if isinstance(obj, Tenant) else obj.tenant_id


def may(user: Any, verb: str, model: Any, obj: Any = None) -> bool:
    """Whether the person may `view`, `add`, `change` or `delete` rows of a tenants' table, or that one.

    What is everybody's is seen by everybody, and changed by operators.
    """
    page = admin.site._registry.get(model)
    if verb == "view":
        needed: Role | None = getattr(page, "seen_by", Role.VIEWER)
    else:
        needed = getattr(page, "changed_by", None)
    if obj is None:
        return has_role(user, needed)
    tenant_id = tenant_of(obj)
    if tenant_id is None:
        return has_role(user, needed if verb == "view" else None)
    return has_role(user, needed, tenant_id)


class Roles:
    """A backend of Django's that answers `user.has_perm` for tenants' tables, and knows nobody.

    The next backend is asked for the other tables.
    """

    def authenticate(self, request: HttpRequest | None, **credentials: Any) -> None:
        """The others say who somebody is."""

    def has_perm(self, user_obj: Any, perm: str, obj: Any = None) -> bool:
        model = _model_of(perm)
        if model is None:
            return False
        verb = perm.partition(".")[2].partition("_")[0]
        if may(user_obj, verb, model, obj):
            return True
        raise PermissionDenied  # whatever the others would say

    def has_module_perms(self, user_obj: Any, app_label: str) -> bool:
        return any(
            may(user_obj, "view", model)
            for model in apps.get_app_config(app_label).get_models()
            if tenant_column(model)
        )


@functools.cache
def _model_of(perm: str) -> Any:
    """The tenants' table that the permission is about, if it is."""
    app_label, _, codename = perm.partition(".")
    verb, _, name = codename.partition("_")
    if verb not in ("view", "add", "change", "delete") or app_label not in apps.app_configs:
        return None
    models = apps.get_app_config(app_label).models
    model = models.get(name)
    return model if model is not None and tenant_column(model) else None


def seen_by_person(user: Any) -> AbstractContextManager[None]:
    """The rows that somebody may see at all; of those who are nobody, none."""
    if is_operator(user):
        return across_tenants()
    return tenants_scope(roles_of(user) if user.is_active and user.is_staff else ())


def shown_on_page(request: HttpRequest, page: Any) -> AbstractContextManager[None]:
    """Around a page's views: the rows that the person may see there, or change where something changes."""
    user: Any = request.user
    if tenant_column(page.model) is None or is_operator(user) or not user.is_authenticated:
        return nullcontext()
    match = request.resolver_match
    adds = match is not None and (match.url_name or "").endswith("_add")
    changes = adds or request.method not in _SAFE
    needed: Role | None = page.changed_by if changes else page.seen_by
    return tenants_scope(
        tenant_id for tenant_id, role in roles_of(user).items() if needed and role.includes(needed)
    )


class ConsoleScopeMiddleware:
    """Every page of the console, whoever wrote it, sees the rows of those who look."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not request.path_info.startswith(_console()) or not request.user.is_authenticated:
            return self.get_response(request)
        with seen_by_person(request.user):
            return self.get_response(request)


@functools.cache
def _console() -> str:
    return reverse("admin:index")
