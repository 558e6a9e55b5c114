"""Every page of the console opens, for whom it should, with a bounded number of queries."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from agents.models import AgentTemplate
from core.models import ApiKey, Budget, ModelPrice, ProviderCredential, Task, Tenant, Tier, UsageRecord
from core.models.membership import Role
from tests.factories import (
    make_agent,
    make_key,
    make_message,
    make_person,
    make_secret,
    make_session,
    make_task,
    make_tenant,
)

OURS = ("core", "agents", "conversations", "auth")
MODELS = [model for model in admin.site._registry if model._meta.app_label in OURS]
# Besides the rows: session, user, count, sums, the filters' and the page's own look-ups.
MOST_QUERIES = 12


def _page(model: type, page: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)  # type: ignore[attr-defined]


def _fill(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    session = make_session(agent)
    task = make_task(tenant, session_id=session.key, agent_id=agent.pk, status="failed", error={"type": "X"})
    make_message(session, "user", "hello", task)
    make_key(tenant)
    make_secret(tenant)
    UsageRecord.unscoped.create(
        tenant=tenant,
        task=task,
        attempt=1,
        call=1,
        agent_id=agent.pk,
        session_id=session.key,
        provider="scripted",
        model="echo",
        prompt_tokens=1_000,
        completion_tokens=234,
        accuracy="exact",
    )
    AgentTemplate.objects.create(
        tenant=tenant,
        slug=tenant.pk,
        name="Template",
        type="assistant",
        config={"provider": "scripted", "model": "echo"},
    )
    ProviderCredential.unscoped.create(tenant=tenant, name="ours", base_url="https://example.com/v1")
    make_person((tenant, Role.OWNER))
    Budget.unscoped.create(tenant=tenant, subject="tenant", period="day", limit_tokens=1_000)
    ModelPrice.unscoped.create(
        tenant=tenant,
        provider="ours",
        model="m",
        prompt=1,
        completion=1,
        valid_from=timezone.now(),
        source="console",
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model._meta.label)
def test_every_page_opens(admin_client: Client, tenant: Tenant, model: type) -> None:
    _fill(tenant)
    User.objects.get(username="admin").groups.create(name="operators")
    listed = admin_client.get(_page(model, "changelist"))
    assert listed.status_code == 200
    row = model._base_manager.first()  # type: ignore[attr-defined]
    assert row is not None, "this test knows no row of the model: make one in `_fill`"
    assert admin_client.get(_page(model, "change", row.pk)).status_code == 200
    model_admin = admin.site._registry[model]
    if model_admin.has_add_permission(listed.wsgi_request):
        assert admin_client.get(_page(model, "add")).status_code == 200


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model._meta.label)
def test_a_list_costs_the_same_for_one_row_and_for_fifty(
    admin_client: Client, tenant: Tenant, model: type
) -> None:
    _fill(tenant)
    admin_client.get(_page(model, "changelist"))  # what is cached, is cached now
    with CaptureQueriesContext(
        connection,
    ) as few:
        admin_client.get(_page(model, "changelist"))
    for _ in range(50):
        _fill(make_tenant())
    with CaptureQueriesContext(connection) as many:
        assert admin_client.get(_page(model, "changelist")).status_code == 200
    assert len(many) <= len(few) <= MOST_QUERIES


def test_nobody_comes_in_without_the_right(client: Client, tenant: Tenant) -> None:
    _fill(tenant)
    task = Task.unscoped.get(tenant=tenant)
    assert "/login/" in client.get(_page(Task, "changelist"))["location"]

    client.force_login(User.objects.create_user("guest"))
    assert "/login/" in client.get(reverse("admin:index"))["location"]

    clerk = User.objects.create_user("clerk", is_staff=True)
    client.force_login(clerk)
    assert client.get(_page(Task, "changelist")).status_code == 403
    assert client.get(_page(Task, "change", task.pk)).status_code == 403
    index = client.get(reverse("admin:index"))
    assert index.status_code == 200
    assert "failures" not in index.context
    assert tenant.pk not in index.content.decode()


def test_who_may_look_may_not_act(client: Client, tenant: Tenant) -> None:
    task = make_task(tenant, status="queued")
    client.force_login(make_person((tenant, Role.VIEWER)))
    page = client.get(_page(Task, "change", task.pk)).content.decode()
    assert str(task.pk) in page
    assert "/do/cancel/" not in page
    assert client.post(_page(Task, "cancel", task.pk)).status_code == 403
    selected = {"action": "cancel", "_selected_action": [str(task.pk)]}
    client.post(_page(Task, "changelist"), selected)
    task.refresh_from_db()
    assert task.status == "queued"


def test_tasks_and_usage_are_only_looked_at(admin_client: Client, tenant: Tenant) -> None:
    _fill(tenant)
    for model in (Task, UsageRecord):
        row = model.unscoped.get()
        assert admin_client.get(_page(model, "add")).status_code == 403
        assert admin_client.post(_page(model, "change", row.pk), {}).status_code == 403
        assert admin_client.post(_page(model, "delete", row.pk), {"post": "yes"}).status_code == 403


def test_overview(admin_client: Client, tenant: Tenant) -> None:
    _fill(tenant)
    make_task(tenant, status="failed", error={"type": "Poison", "message": "<b>died</b>"})
    with CaptureQueriesContext(connection) as queries:
        page = admin_client.get(reverse("admin:index"))
    assert len(queries) <= 8
    counts = {item["status"]: item["count"] for item in page.context["statuses"]}
    assert counts["failed"] == 2
    assert [row["prompt"] for row in page.context["tokens"] if row["tenant_id"] == tenant.pk] == ["1,000"]
    assert "Poison: &lt;b&gt;died&lt;/b&gt;" in page.content.decode()


def test_usage_sums_what_the_filters_leave(admin_client: Client, tenant: Tenant) -> None:
    _fill(tenant)
    _fill(make_tenant())
    everything = admin_client.get(_page(UsageRecord, "changelist"))
    assert [total for _, total in everything.context["totals"]] == ["2,000", "468", "0", "unknown"]
    one = admin_client.get(_page(UsageRecord, "changelist"), {"tenant__id__exact": tenant.pk})
    assert [total for _, total in one.context["totals"]] == ["1,000", "234", "0", "unknown"]


def test_the_console_speaks_spanish(admin_client: Client, tenant: Tenant) -> None:
    _fill(tenant)
    page = admin_client.get(reverse("admin:index"), headers={"accept-language": "es"}).content.decode()
    for text in ("Últimos fallos", "Tareas", "Sesiones", "completada", "Claves API"):
        assert text in page
    tasks = admin_client.get(_page(Task, "changelist"), headers={"accept-language": "es"}).content.decode()
    for text in ("Filtros", "Duración", "fallida"):
        assert text in tasks


def test_a_tier_is_edited_line_by_line(admin_client: Client, tenant: Tenant) -> None:
    body = {
        "name": "Small",
        "allowed_models": "gpt-4.1-mini\r\n\r\n  llama-3 \r\n",
        "priority_ceiling": "5",
        "weight": "2.5",
        "max_running": "7",
        "uses_environment_keys": "on",
    }
    assert admin_client.post(_page(Tier, "change", tenant.tier_id), body).status_code == 302
    tenant.tier.refresh_from_db()
    assert tenant.tier.allowed_models == ["gpt-4.1-mini", "llama-3"]
    assert (tenant.tier.weight, tenant.tier.max_running) == (2.5, 7)
    for field, value in {"weight": "0", "max_running": "0"}.items():
        assert (
            admin_client.post(_page(Tier, "change", tenant.tier_id), body | {field: value}).status_code == 200
        )
    assert "gpt-4.1-mini\nllama-3" in admin_client.get(_page(Tier, "change", tenant.tier_id)).content.decode()


def test_a_tenant_keeps_its_id_and_is_not_deleted(admin_client: Client, tenant: Tenant) -> None:
    body = {"id": "other", "name": "New name", "tier": tenant.tier_id}
    assert admin_client.post(_page(Tenant, "change", tenant.pk), body).status_code == 302
    tenant.refresh_from_db()
    assert tenant.name == "New name"
    assert not Tenant.objects.filter(pk="other").exists()
    assert admin_client.post(_page(Tenant, "delete", tenant.pk), {"post": "yes"}).status_code == 403
    assert admin_client.post(_page(Tenant, "add"), {**body, "id": "Not A Slug"}).status_code == 200
    assert admin_client.post(_page(Tenant, "add"), body).status_code == 302
    assert ApiKey.unscoped.filter(tenant_id="other").count() == 0
