"""Sessions in the console."""

from __future__ import annotations

import pytest
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse

from conversations.admin import SHOWN
from conversations.models import Session
from conversations.transcript import FORMS
from core.models import AuditEntry, Task, Tenant
from core.models.membership import Role
from tests.factories import make_agent, make_message, make_person, make_session, make_task, make_tenant

ATTACKS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "</div></section><iframe src=javascript:alert(1)>",
    "[x](javascript:alert(1)) ![](https://evil.example/?q=1)",
)


def test_a_conversation_reads_like_a_chat(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    task = make_task(tenant)
    make_message(session, "user", "Good morning", task)
    answer = make_message(session, "assistant", "Good evening", task)
    type(answer).unscoped.filter(pk=answer.pk).update(finish_reason="cancelled")
    page = admin_client.get(reverse("admin:conversations_session_change", args=[session.pk])).content.decode()
    assert page.index("console-message-user") < page.index("Good morning") < page.index("Good evening")
    assert page.index("console-message-assistant") < page.index("Good evening")
    assert "<span>cancelled</span>" in page
    assert reverse("admin:core_task_change", args=[task.pk]) in page


def test_attacks_are_text(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant), key="s-attacked")
    for attack in ATTACKS:
        make_message(session, "assistant", attack)
    page = admin_client.get(reverse("admin:conversations_session_change", args=[session.pk])).content.decode()
    for attack in ATTACKS[:4]:
        assert attack not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert 'src="https://evil.example' not in page


def test_a_long_conversation_is_read_page_by_page(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    for number in range(SHOWN + 1):
        make_message(session, "user", f"[{number}]")
    address = reverse("admin:conversations_session_change", args=[session.pk])
    newest = admin_client.get(address)
    assert "[0]" not in newest.content.decode()
    assert "[1]" in newest.content.decode()
    older = admin_client.get(address, {"before": newest.context["older"]}).content.decode()
    assert "[0]" in older
    assert "[1]" not in older
    for nonsense in ("x", "-1", "9" * 30, ""):
        assert admin_client.get(address, {"before": nonsense}).status_code == 200


def test_sessions_are_found_by_whole_ids(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant), key="s-wanted")
    other = make_session(make_agent(tenant))
    page = admin_client.get(
        reverse("admin:conversations_session_changelist"), {"q": "s-wanted"}
    ).content.decode()
    assert session.key in page
    assert other.key not in page


def page_of(admin_client: Client, session: Session) -> str:
    address = reverse("admin:conversations_session_change", args=[session.pk])
    return admin_client.get(address).content.decode()


def test_a_session_is_closed_from_its_page(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    close = reverse("admin:conversations_session_close", args=[session.pk])
    assert close in page_of(admin_client, session)
    admin_client.post(close)
    session.refresh_from_db()
    assert session.state == "closed"
    assert close not in page_of(admin_client, session)
    entry = AuditEntry.unscoped.get(verb="session.close")
    assert (entry.tenant_id, entry.actor) == (tenant.pk, "user:admin")


def test_a_session_is_deleted_from_its_page(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    make_message(session, "user", "Hello", make_task(tenant, session_id=session.key, status="completed"))
    address = reverse("admin:conversations_session_delete", args=[session.pk])
    assert address in page_of(admin_client, session)
    assert admin_client.get(address).status_code == 200
    admin_client.post(address, {"post": "yes"})
    assert not Session.unscoped.exists()
    assert not Task.unscoped.filter(session_id=session.key).exists()
    assert AuditEntry.unscoped.filter(verb="session.delete").exists()


def test_several_sessions_are_deleted_at_once(admin_client: Client, tenant: Tenant) -> None:
    sessions = [make_session(make_agent(tenant)), make_session(make_agent(make_tenant()))]
    body = {"action": "delete_selected", "_selected_action": [item.pk for item in sessions], "post": "yes"}
    admin_client.post(reverse("admin:conversations_session_changelist"), body)
    assert not Session.unscoped.exists()
    assert AuditEntry.unscoped.filter(verb="session.delete").count() == 2


@pytest.mark.parametrize("form", list(FORMS))
def test_a_session_is_exported_from_its_page(admin_client: Client, tenant: Tenant, form: str) -> None:
    session = make_session(make_agent(tenant))
    make_message(session, "user", "Hello")
    address = reverse(f"admin:conversations_session_export_{form}", args=[session.pk])
    assert address in page_of(admin_client, session)
    answer = admin_client.get(address)
    assert "Hello" in answer.content.decode()
    assert answer["Content-Disposition"].startswith("attachment")


def test_who_only_looks_closes_and_deletes_nothing(client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    client.force_login(make_person((tenant, Role.VIEWER)))
    for name in ("close", "delete"):
        address = reverse(f"admin:conversations_session_{name}", args=[session.pk])
        assert client.post(address, {"post": "yes"}).status_code in (302, 403, 404)
    assert Session.unscoped.get().state == "created"


def test_a_deleted_session_is_not_shown(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant), key="s-husk")
    Session.close(session.pk, deleted_at=Now())
    assert (
        "s-husk" not in admin_client.get(reverse("admin:conversations_session_changelist")).content.decode()
    )


def test_states_and_who_speaks_are_shown(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    Session.unscoped.filter(pk=session.pk).update(
        state="idle", title="Order 7", user_info={"name": "<b>Ada</b>"}, context={"order": "7"}
    )
    page = page_of(admin_client, session)
    for words in ("Order 7", "&lt;b&gt;Ada&lt;/b&gt;", "&quot;order&quot;"):
        assert words in page
    listed = reverse("admin:conversations_session_changelist")
    assert session.key in admin_client.get(listed, {"state__in": "idle"}).content.decode()
    assert session.key not in admin_client.get(listed, {"state__in": "closed"}).content.decode()


def test_how_long_a_tenant_keeps_its_sessions_is_set_on_its_page(
    admin_client: Client, tenant: Tenant
) -> None:
    address = reverse("admin:core_tenant_change", args=[tenant.pk])
    body = {"name": tenant.name, "tier": tenant.tier_id}
    admin_client.post(address, {**body, "retention_days": "30"})
    tenant.refresh_from_db()
    assert tenant.retention_days == 30
    entry = AuditEntry.unscoped.get(verb="tenant.update")
    assert (entry.before, entry.after) == ({"retention_days": None}, {"retention_days": 30})
    admin_client.post(address, {**body, "retention_days": "0"})
    tenant.refresh_from_db()
    assert tenant.retention_days == 30
    admin_client.post(address, {**body, "retention_days": ""})
    tenant.refresh_from_db()
    assert tenant.retention_days is None
