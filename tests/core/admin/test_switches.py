"""Kill switches, and the secrets of end users' tokens, in the console."""

from __future__ import annotations

import re

from django.test import Client
from django.urls import reverse

from agents.models import Agent
from core.models import AuditEntry, EndUserSecret, Tenant
from core.selectors import signing_secrets
from core.tenancy import across_tenants
from tests.factories import make_agent, make_secret

SECRET = re.compile(r"nbs_[a-z0-9]{12}_[A-Za-z0-9_-]{43}")


def reloaded(row: Tenant | Agent) -> Tenant | Agent:
    with across_tenants():
        row.refresh_from_db()
    return row


def check_switch(client: Client, row: Tenant | Agent, model: str) -> None:
    """Off only with a reason, and on again; a look changes nothing."""
    page = reverse(f"admin:{model}_change", args=[row.pk])
    switch = reverse(f"admin:{model}_switch", args=[row.pk])
    assert switch in client.get(page).content.decode()
    assert client.get(switch).status_code == 200
    assert client.post(switch, {"reason": "  "}).status_code == 200
    assert reloaded(row).suspended_at is None
    shown = client.post(switch, {"reason": "it swears"}, follow=True).content.decode()
    assert "it swears" in shown
    assert reloaded(row).suspended_at is not None
    assert "it swears" in client.get(page).content.decode()
    assert client.get(switch).status_code == 200
    assert reloaded(row).suspended_at is not None
    client.post(switch, follow=True)
    assert reloaded(row).suspended_at is None
    with across_tenants():
        entries = AuditEntry.unscoped.filter(object_id=str(row.pk), verb__endswith="suspend").order_by("pk")
        assert [entry.verb.partition(".")[2] for entry in entries] == ["suspend", "unsuspend"]
        assert {entry.actor for entry in entries} == {"user:admin"}


def test_a_tenant_is_switched_off_and_on(admin_client: Client, tenant: Tenant) -> None:
    check_switch(admin_client, tenant, "core_tenant")


def test_an_agent_is_switched_off_and_on(admin_client: Client, tenant: Tenant) -> None:
    check_switch(admin_client, make_agent(tenant), "agents_agent")


def test_what_is_not_there_is_not_switched(admin_client: Client, tenant: Tenant) -> None:
    assert admin_client.post(reverse("admin:core_tenant_switch", args=["nobody"])).status_code == 302
    assert admin_client.post(reverse("admin:agents_agent_switch", args=[tenant.pk])).status_code == 302


def test_staff_without_a_role_switch_nothing(client: Client, django_user_model: type, tenant: Tenant) -> None:
    client.force_login(django_user_model.objects.create_user("grace", is_staff=True))  # type: ignore[attr-defined]
    agent = make_agent(tenant)
    for address in (
        reverse("admin:core_tenant_switch", args=[tenant.pk]),
        reverse("admin:agents_agent_switch", args=[agent.pk]),
    ):
        assert client.post(address, {"reason": "mine"}).status_code in (302, 403)
    assert reloaded(tenant).suspended_at is reloaded(agent).suspended_at is None


def test_a_new_secret_is_shown_once_and_kept_encrypted(admin_client: Client, tenant: Tenant) -> None:
    body = {"tenant": tenant.pk, "name": "Their shop"}
    page = admin_client.post(reverse("admin:core_endusersecret_add"), body, follow=True).content.decode()
    [text] = set(SECRET.findall(page))
    assert list(signing_secrets(tenant.pk).values()) == [text]
    with across_tenants():
        row = EndUserSecret.unscoped.get(tenant=tenant)
    for address in (
        reverse("admin:core_endusersecret_changelist"),
        reverse("admin:core_endusersecret_change", args=[row.pk]),
    ):
        again = admin_client.get(address).content.decode()
        assert "Their shop" in again
        assert not SECRET.findall(again)


def test_a_secret_is_revoked_and_never_edited(admin_client: Client, tenant: Tenant) -> None:
    make_secret(tenant)
    with across_tenants():
        row = EndUserSecret.unscoped.get(tenant=tenant)
    change = reverse("admin:core_endusersecret_change", args=[row.pk])
    assert admin_client.post(change, {"name": "x"}).status_code == 403
    revoke = reverse("admin:core_endusersecret_revoke", args=[row.pk])
    assert revoke in admin_client.get(change).content.decode()
    assert revoke not in admin_client.post(revoke, follow=True).content.decode()
    with across_tenants():
        row.refresh_from_db()
    assert row.revoked_at is not None
    assert not row.encrypted


def test_the_snippets_fit_the_agent(admin_client: Client, tenant: Tenant) -> None:
    def page(**config: object) -> str:
        agent = make_agent(tenant, **config)
        address = reverse("admin:agents_agent_embed", args=[agent.pk])
        assert (
            address
            in admin_client.get(reverse("admin:agents_agent_change", args=[agent.pk])).content.decode()
        )
        return admin_client.get(address).content.decode().replace(str(agent.pk), "ID")

    public = page()
    assert "http://testserver/chat/ID" in public
    assert "postMessage" not in public
    signed = page(access="signed", allowed_origins=["https://shop.example"])
    assert "postMessage" in signed
    assert "jwt.encode" in signed
    assert "http://testserver, where it comes from" in signed
    assert "&lt;iframe" not in page(access="key")
