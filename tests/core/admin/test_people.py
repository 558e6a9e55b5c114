"""Who lets whom into a tenant."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from core.actions.bus import execute
from core.actions.people import MembershipCreateAction, MembershipUpdateAction
from core.errors import Conflict, NotFound
from core.models import AuditEntry, Membership, Tenant
from core.models.membership import Role
from core.tenancy import tenant_scope
from tests.factories import make_person, make_tenant

BACKEND = "django.contrib.auth.backends.ModelBackend"
LIST = reverse("admin:core_membership_changelist")
ADD = reverse("admin:core_membership_add")


def page(row: Membership, name: str = "change") -> str:
    return reverse(f"admin:core_membership_{name}", args=[row.pk])


@pytest.fixture
def owner(client: Client, tenant: Tenant) -> Client:
    client.force_login(make_person((tenant, Role.OWNER), name="owner"), BACKEND)
    return client


def test_an_owner_lets_people_in_and_out(owner: Client, tenant: Tenant) -> None:
    ada = make_person(name="ada")
    body = {"tenant": tenant.pk, "username": "ada", "role": "editor"}
    assert owner.post(ADD, body).status_code == 302
    row = Membership.unscoped.get(user=ada)
    assert (row.tenant_id, row.role) == (tenant.pk, Role.EDITOR)
    assert "ada" in owner.get(LIST).content.decode()

    assert owner.post(page(row), {"role": "viewer"}).status_code == 302
    row.refresh_from_db()
    assert row.role == Role.VIEWER
    assert owner.post(page(row, "delete"), {"post": "yes"}).status_code == 302
    assert not Membership.unscoped.filter(user=ada).exists()

    entries = AuditEntry.unscoped.filter(object_type="membership").order_by("pk")
    assert [(entry.verb, entry.before, entry.after) for entry in entries] == [
        ("membership.create", {}, {"person": "ada", "role": "editor"}),
        ("membership.update", {"role": "editor"}, {"role": "viewer"}),
        ("membership.delete", {"person": "ada", "role": "viewer"}, {}),
    ]
    assert {entry.actor for entry in entries} == {"user:owner"}


@pytest.mark.parametrize("name", ["nobody-at-all", "no-staff", "gone", "owner"])
def test_who_cannot_be_let_in_is_told_at_the_name(owner: Client, tenant: Tenant, name: str) -> None:
    User.objects.create_user("no-staff")
    make_person(name="gone")
    User.objects.filter(username="gone").update(is_active=False)
    answer = owner.post(ADD, {"tenant": tenant.pk, "username": name, "role": "viewer"})
    assert list(answer.context["adminform"].form.errors) == ["username"]
    assert Membership.unscoped.count() == 1


def test_an_owner_lets_nobody_into_another_tenant(owner: Client, tenant: Tenant) -> None:
    other = make_tenant()
    stranger = make_person((other, Role.OWNER), name="stranger")
    answer = owner.post(ADD, {"tenant": other.pk, "username": "owner", "role": "owner"})
    assert list(answer.context["adminform"].form.errors) == ["tenant"]
    [row] = Membership.unscoped.filter(user=stranger)
    for name, body in (("change", {"role": "viewer"}), ("delete", {"post": "yes"})):
        assert owner.post(page(row, name), body).status_code == 302
    row.refresh_from_db()
    assert row.role == Role.OWNER
    with tenant_scope(tenant.pk), pytest.raises(NotFound):
        execute(MembershipUpdateAction(row_id=row.pk, role=Role.VIEWER))


def test_a_person_belongs_to_a_tenant_once(tenant: Tenant) -> None:
    make_person(name="ada")
    wanted = MembershipCreateAction(username="ada", role=Role.VIEWER)
    with tenant_scope(tenant.pk):
        execute(wanted)
        with pytest.raises(Conflict):
            execute(wanted)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.EDITOR])
def test_who_is_no_owner_lets_nobody_in(client: Client, tenant: Tenant, role: Role) -> None:
    client.force_login(make_person((tenant, role), name="ada"), BACKEND)
    assert client.get(LIST).status_code == 403
    assert client.post(ADD, {"tenant": tenant.pk, "username": "ada", "role": "owner"}).status_code == 403
    assert Membership.unscoped.get().role == role


def test_people_and_groups_are_the_operators(owner: Client) -> None:
    """Also for somebody to whom Django's permissions would give them."""
    person = User.objects.get(username="owner")
    person.user_permissions.set(Permission.objects.all())
    for model in ("user", "group"):
        assert owner.get(reverse(f"admin:auth_{model}_changelist")).status_code == 403
        assert owner.get(reverse(f"admin:auth_{model}_add")).status_code == 403
    change = reverse("admin:auth_user_change", args=[person.pk])
    assert owner.post(change, {"is_superuser": "on"}).status_code in (302, 403)
    person.refresh_from_db()
    assert not person.is_superuser


def test_a_role_that_is_taken_away_ends_at_once(owner: Client) -> None:
    assert owner.get(LIST).status_code == 200
    Membership.unscoped.all().delete()
    assert owner.get(LIST).status_code == 403
