"""Webhooks in the console."""

from __future__ import annotations

import re

from django.db import transaction
from django.test import Client
from django.urls import reverse

from agents.events import notify_agent
from core import secrets
from core.actions.bus import execute
from core.actions.notices import NoticeRelayAction
from core.models import AuditEntry, Tenant
from core.tenancy import tenant_scope
from orchestrator.models import Delivery, DeliveryAttempt, WebhookEndpoint
from tests.factories import make_agent

SECRET = re.compile(r"whsec_[A-Za-z0-9+/=]{44}")
ADD = reverse("admin:orchestrator_webhookendpoint_add")


def page(kind: str, name: str, *args: object) -> str:
    return reverse(f"admin:orchestrator_{kind}_{name}", args=args)


def made(admin_client: Client, tenant: Tenant, **fields: object) -> tuple[WebhookEndpoint, str]:
    """An endpoint made in the console, and its secret as it was shown."""
    body = {"tenant": tenant.pk, "url": "https://example.com/hooks", "description": "Shop", **fields}
    shown = admin_client.post(ADD, body, follow=True).content.decode().replace("&#x2B;", "+")
    [secret] = set(SECRET.findall(shown))
    return WebhookEndpoint.unscoped.get(), secret


def delivery_of(endpoint: WebhookEndpoint) -> Delivery:
    agent = make_agent(endpoint.tenant)
    with tenant_scope(endpoint.tenant_id):
        with transaction.atomic():
            notify_agent("agent_updated", agent, ["name"])
        execute(NoticeRelayAction(subject=str(agent.pk)))
    delivery: Delivery = Delivery.unscoped.get()
    return delivery


def test_an_endpoint_is_made_and_its_secret_shown_once(admin_client: Client, tenant: Tenant) -> None:
    endpoint, secret = made(admin_client, tenant, events=["agent_created", "agent_deleted"])
    assert secrets.decrypt(endpoint.secret) == secret
    assert (endpoint.tenant_id, endpoint.events) == (tenant.pk, ["agent_created", "agent_deleted"])
    for address in (page("webhookendpoint", "changelist"), page("webhookendpoint", "change", endpoint.pk)):
        again = admin_client.get(address).content.decode()
        assert "https://example.com/hooks" in again
        assert "whsec_" not in again
        assert "enabled" in again and "living" not in again
    entry = AuditEntry.unscoped.get(verb="webhook.create")
    assert (entry.source, entry.actor) == ("admin", "user:admin")


def test_what_the_action_refuses_is_told_at_its_field(admin_client: Client, tenant: Tenant) -> None:
    answer = admin_client.post(ADD, {"tenant": tenant.pk, "url": "http://10.0.0.1/"})
    assert "not a public address" in answer.content.decode()
    assert not WebhookEndpoint.unscoped.exists()


def test_an_endpoint_is_changed_disabled_and_enabled(admin_client: Client, tenant: Tenant) -> None:
    endpoint, _ = made(admin_client, tenant)
    change = page("webhookendpoint", "change", endpoint.pk)
    body = {"url": "https://example.com/2", "description": "", "disabled": "on"}
    assert admin_client.post(change, body).status_code == 302
    endpoint.refresh_from_db()
    assert (endpoint.url, endpoint.disabled_reason) == ("https://example.com/2", "owner")
    assert "checked" in admin_client.get(change).content.decode()
    del body["disabled"]
    assert admin_client.post(change, body).status_code == 302
    endpoint.refresh_from_db()
    assert endpoint.disabled_at is None


def test_a_new_secret_is_shown_once(admin_client: Client, tenant: Tenant) -> None:
    endpoint, first = made(admin_client, tenant)
    rotate = page("webhookendpoint", "rotate", endpoint.pk)
    assert admin_client.get(rotate).status_code == 405
    shown = admin_client.post(rotate, follow=True).content.decode().replace("&#x2B;", "+")
    [second] = set(SECRET.findall(shown))
    endpoint.refresh_from_db()
    assert first != second == secrets.decrypt(endpoint.secret)
    assert secrets.decrypt(endpoint.previous_secret) == first


def test_deliveries_are_looked_at_and_replayed(committed_tenant: Tenant, admin_client: Client) -> None:
    endpoint, _ = made(admin_client, committed_tenant)
    delivery = delivery_of(endpoint)
    Delivery.unscoped.update(status="dead")
    DeliveryAttempt.unscoped.create(
        tenant=committed_tenant,
        delivery=delivery,
        started_at=delivery.created_at,
        seconds=0.25,
        status_code=500,
        answer="<script>alert(1)</script>",
    )
    for term in ("", str(delivery.pk), delivery.subject, str(delivery.notice.event_id), "nothing"):
        listed = admin_client.get(page("delivery", "changelist"), {"q": term}).content.decode()
        assert (page("delivery", "change", delivery.pk) in listed) == (term != "nothing")
    change = page("delivery", "change", delivery.pk)
    shown = admin_client.get(change).content.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "250 ms" in shown and "agent_updated" in shown
    assert admin_client.post(change, {"status": "delivered"}).status_code == 403
    admin_client.post(page("delivery", "replay", delivery.pk))
    delivery.refresh_from_db()
    assert delivery.status == "pending"
    admin_client.post(page("webhookendpoint", "change", endpoint.pk), {"url": endpoint.url, "disabled": "on"})
    assert page("delivery", "replay", delivery.pk) not in admin_client.get(change).content.decode()
    refused = admin_client.post(page("delivery", "replay", delivery.pk), follow=True)
    assert "The webhook is disabled." in refused.content.decode()


def test_an_endpoint_is_deleted_with_its_log(admin_client: Client, tenant: Tenant) -> None:
    endpoint, _ = made(admin_client, tenant)
    delivery_of(endpoint)
    delete = page("webhookendpoint", "delete", endpoint.pk)
    assert admin_client.get(delete).status_code == 200
    admin_client.post(delete, {"post": "yes"})
    assert not WebhookEndpoint.unscoped.exists() and not Delivery.unscoped.exists()
