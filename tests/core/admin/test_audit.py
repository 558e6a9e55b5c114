"""The record of changes in the console: to read and to search."""

from __future__ import annotations

from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from agents.actions import AgentUpdateAction
from core.actions.bus import execute
from core.audit import Origin, asked_by
from core.models import AuditEntry, Tenant
from core.models.audit import AuditSource
from core.models.membership import Role
from core.tenancy import tenant_scope
from tests.factories import make_agent, make_person

LIST = reverse("admin:core_auditentry_changelist")


def test_a_change_is_shown_field_by_field(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions="<i>One</i>\nTwo")
    change = {"instructions": "<i>One</i>\nThree", "temperature": 0.5}
    with tenant_scope(tenant.pk), asked_by(Origin(AuditSource.QUEUE, request_id="req-9")):
        execute(AgentUpdateAction(agent_id=agent.pk, name="Grace", config=change, actor="key:abc"))
    entry = AuditEntry.unscoped.get(verb="agent.update")
    page = admin_client.get(reverse("admin:core_auditentry_change", args=[entry.pk]))
    html = page.content.decode()
    shown = {change["field"]: change for change in page.context["changes"]}
    assert shown["name"] == {"field": "name", "before": "Test agent", "after": "Grace", "lines": []}
    assert ("added", "+Three") in shown["config.instructions"]["lines"]
    assert "<i>One" not in html
    assert "key:abc" in html

    for query, found in (
        (str(agent.pk), 2),
        ("key:abc", 1),
        ("req-9", 1),
        ("key:ab", 0),
        (str(agent.pk)[:8], 0),
    ):
        listed = admin_client.get(LIST, {"q": query})
        assert listed.context["cl"].result_count == found, query


def test_nobody_writes_in_it(admin_client: Client, tenant: Tenant) -> None:
    make_agent(tenant)
    entry = AuditEntry.unscoped.get()
    change = reverse("admin:core_auditentry_change", args=[entry.pk])
    assert admin_client.post(change, {"actor": "nobody"}).status_code == 403
    assert admin_client.post(reverse("admin:core_auditentry_delete", args=[entry.pk])).status_code == 403
    assert admin_client.get(reverse("admin:core_auditentry_add")).status_code == 403
    rows = {"action": "delete_selected", "_selected_action": [str(entry.pk)], "post": "yes"}
    admin_client.post(LIST, rows)
    assert AuditEntry.unscoped.filter(pk=entry.pk, actor="test").exists()


def test_who_may_see_it(client: Client, tenant: Tenant) -> None:
    clerk = User.objects.create_user("clerk", is_staff=True)
    client.force_login(clerk)
    assert client.get(LIST).status_code == 403
    clerk.user_permissions.add(Permission.objects.get(codename="view_auditentry"))
    assert client.get(LIST).status_code == 403
    client.force_login(make_person((tenant, Role.VIEWER)))
    assert client.get(LIST).status_code == 200
