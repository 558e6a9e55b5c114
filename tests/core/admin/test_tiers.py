"""Tiers and tenants in the console: what would no longer fit is named first; every change is on record."""

from __future__ import annotations

from typing import Any

from django.test import Client
from django.urls import reverse

from agents.actions import AgentUpdateAction
from core.actions.bus import execute
from core.models import AuditEntry, Tenant, Tier
from core.tenancy import tenant_scope
from orchestrator.models import WebhookEndpoint
from tests.factories import make_agent, make_tenant

ADD = reverse("admin:core_tier_add")


def change(tier: Tier) -> str:
    return reverse("admin:core_tier_change", args=[tier.pk])


def body(**fields: Any) -> dict[str, Any]:
    return {
        "name": "Tier",
        "allowed_models": "",
        "max_agents": "",
        "max_webhooks": "",
        "max_run_seconds": "",
        "max_output_tokens": "",
        "priority_ceiling": "9",
        "weight": "1",
        "max_running": "25",
        "uses_environment_keys": "on",
        "own_providers": "on",
        **fields,
    }


def errors(page: Any) -> list[str]:
    return list(page.context["adminform"].form.non_field_errors())


def test_a_tier_is_made_changed_and_deleted_on_record(admin_client: Client) -> None:
    assert admin_client.post(ADD, body(slug="basic", max_agents="3", max_run_seconds="30")).status_code == 302
    tier = Tier.objects.get(slug="basic")
    assert (tier.max_agents, tier.max_webhooks, tier.max_run_seconds) == (3, None, 30.0)
    assert tier.own_providers
    edited = body(allowed_models="a\r\nb", max_output_tokens="500")
    del edited["own_providers"]
    assert admin_client.post(change(tier), edited).status_code == 302
    tier.refresh_from_db()
    assert (tier.allowed_models, tier.max_agents, tier.own_providers) == (["a", "b"], None, False)
    delete = reverse("admin:core_tier_delete", args=[tier.pk])
    assert admin_client.post(delete, {"post": "yes"}).status_code == 302
    assert not Tier.objects.filter(slug="basic").exists()
    entries = list(AuditEntry.unscoped.filter(object_type="tier").order_by("pk"))
    assert [(entry.verb, entry.object_id, entry.actor, entry.tenant_id) for entry in entries] == [
        (verb, "basic", "user:admin", None) for verb in ("tier.create", "tier.update", "tier.delete")
    ]
    changed = {"allowed_models", "max_agents", "max_run_seconds", "max_output_tokens", "own_providers"}
    assert entries[1].after.keys() == changed
    assert (entries[1].before["max_agents"], entries[1].after["max_output_tokens"]) == (3, 500)


def test_a_wrong_bound_is_told_at_its_field(admin_client: Client, tenant: Tenant) -> None:
    for field, value in (
        ("max_agents", "-1"),
        ("max_run_seconds", "0"),
        ("max_output_tokens", "0"),
        ("weight", "0"),
        ("priority_ceiling", "10"),
    ):
        page = admin_client.post(change(tenant.tier), body(**{field: value}))
        assert page.status_code == 200
        assert field in page.content.decode()
    page = admin_client.post(ADD, body(slug=tenant.tier_id))
    assert list(page.context["adminform"].form.errors) == ["slug"]
    assert not AuditEntry.unscoped.exists()


def test_what_would_no_longer_fit_is_named_before_it_is_saved(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, timeout_seconds=60)
    WebhookEndpoint.unscoped.create(tenant=tenant, url="https://example.com", secret="x")
    make_agent(make_tenant(), timeout_seconds=60)
    wanted = body(max_run_seconds="30", max_webhooks="0")
    page = admin_client.post(change(tenant.tier), wanted)
    assert page.status_code == 200
    assert sorted(errors(page)) == [
        "2 things would no longer fit:",
        f"{tenant.pk}: 1 webhook: The tier Tier allows 0 webhooks.",
        f"{tenant.pk}: Test agent: The tier Tier allows runs of 30 seconds at most.",
    ]
    assert "Save it all the same" in page.content.decode()
    tenant.tier.refresh_from_db()
    assert tenant.tier.max_run_seconds is None

    assert admin_client.post(change(tenant.tier), wanted | {"confirmed": "on"}).status_code == 302
    tenant.tier.refresh_from_db()
    assert tenant.tier.max_run_seconds == 30
    shown = admin_client.get(reverse("admin:agents_agent_change", args=[agent.pk])).content.decode()
    assert "The tier Tier allows runs of 30 seconds at most." in shown
    listed = admin_client.get(reverse("admin:agents_agent_changelist")).content.decode()
    assert "warnings" in listed
    # What did not fit before is not asked about again.
    assert admin_client.post(change(tenant.tier), wanted | {"weight": "2"}).status_code == 302


def test_many_misfits_are_counted(admin_client: Client, tenant: Tenant) -> None:
    for _ in range(23):
        make_agent(tenant)
    page = admin_client.post(change(tenant.tier), body(allowed_models="other"))
    assert (len(errors(page)), errors(page)[-1]) == (22, "… and 3 more")


def test_a_tenant_that_moves_to_a_smaller_tier_is_told_what_does_not_fit(
    admin_client: Client, tenant: Tenant
) -> None:
    make_agent(tenant)
    small = Tier.objects.create(slug="small", name="Small", allowed_models=["other"])
    page = reverse("admin:core_tenant_change", args=[tenant.pk])
    refused = admin_client.post(page, {"name": "Acme", "tier": "small"})
    assert errors(refused) == [
        "1 thing would no longer fit:",
        f"{tenant.pk}: Test agent: The tier Small does not allow this model.",
    ]
    assert admin_client.post(page, {"name": "Acme", "tier": "small", "confirmed": "on"}).status_code == 302
    tenant.refresh_from_db()
    assert (tenant.name, tenant.tier) == ("Acme", small)
    entry = AuditEntry.unscoped.get(object_type="tenant")
    assert (entry.tenant_id, entry.after) == (tenant.pk, {"name": "Acme", "tier": "small"})
    # A change that has nothing to do with it is asked about no more.
    assert admin_client.post(page, {"name": "Acme Inc.", "tier": "small"}).status_code == 302


def test_an_unpublished_change_that_does_not_fit_is_named_once(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    with tenant_scope(tenant.pk):
        execute(AgentUpdateAction(agent_id=agent.pk, config={"temperature": 1}, publish=False, actor="test"))
    page = admin_client.post(change(tenant.tier), body(allowed_models="other"))
    assert len(errors(page)) == 2
