"""Mass updates in the console."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from agents.actions import AgentDeleteAction
from agents.admin import bulk
from agents.bulk_actions import AgentBulkUpdateAction
from agents.models import Agent, AgentVersion
from core.actions.bus import execute
from core.actions.worker import run_task
from core.models import AuditEntry, Task, Tenant
from core.models.membership import Membership, Role
from core.tenancy import tenant_scope
from tests.factories import make_agent, make_task, make_tenant

pytestmark = pytest.mark.django_db(transaction=True)

LIST = reverse("admin:agents_agent_changelist")
FORM = reverse("admin:agents_agent_bulk")


def page(task_id: Any, name: str = "task") -> str:
    return reverse(f"admin:agents_agent_bulk_{name}", args=[task_id])


def select(client: Client, agents: list[Agent], query: str = "") -> Any:
    chosen = [str(agent.pk) for agent in agents]
    return client.post(LIST + query, {"action": "change_several", "_selected_action": chosen})


def fill(client: Client, agents: list[Agent], **fields: str) -> Any:
    """The form as a browser sends it: every field, most of them empty."""
    form = select(client, agents).context["form"]
    empty = {bound.name: bound.value() or "" for bound in form if bound.name != "hold"}
    return client.post(FORM, empty | fields)


def asked(tenant: Tenant) -> Task:
    task: Task = Task.unscoped.get(tenant=tenant, action=AgentBulkUpdateAction.verb)
    return task


def ask(client: Client, agents: list[Agent], **fields: str) -> Task:
    answer = fill(client, agents, **fields)
    task = asked(agents[0].tenant)
    assert (answer.status_code, answer["Location"]) == (302, page(task.pk))
    return task


def work(task: Task) -> None:
    run_task(str(task.pk), task.tenant_id)


def newest(agent: Agent) -> AgentVersion:
    agent.refresh_from_db()
    assert agent.version is not None
    return agent.version


def told(answer: Any) -> str:
    return " ".join(str(message) for message in answer.context["messages"])


def test_several_agents_are_changed(admin_client: Client, tenant: Tenant) -> None:
    chosen = [make_agent(tenant, temperature=0.5, restart_after_fault=True) for _ in range(2)]
    left = make_agent(tenant)
    form = select(admin_client, chosen)
    assert form.status_code == 200
    assert (form.context["count"], form.context["tenant"]) == (2, tenant.pk)

    changes = {"config_max_turns": "3", "config_instructions": "One\r\ntwo", "config_fallback_model": "demo"}
    about = {"type": "clerk", "description": "Files.", "note": "All of them"}
    task = ask(admin_client, chosen, **changes, **about, config_fallback_provider="scripted")
    work(task)
    for agent in chosen:
        version = newest(agent)
        assert (version.number, version.author, version.note) == (2, "user:admin", "All of them")
        assert version.config["max_turns"] == 3
        assert version.config["instructions"] == "One\ntwo"
        assert version.config["fallback"] == {"provider": "scripted", "model": "demo"}
        # What was left empty is as it was.
        assert (version.config["temperature"], version.config["restart_after_fault"]) == (0.5, True)
        assert (agent.type, agent.description, agent.status) == ("clerk", "Files.", "published")
        assert agent.published == version
        assert AuditEntry.unscoped.get(object_id=str(agent.pk), verb="agent.update").actor == "user:admin"
    assert newest(left).number == 1


def test_switches_drafts_and_what_waits(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, restart_after_fault=True)
    work(ask(admin_client, [agent], config_restart_after_fault="False", hold="on"))
    assert newest(agent).config["restart_after_fault"] is False
    assert agent.published != agent.version
    Task.unscoped.all().delete()
    work(ask(admin_client, [agent], status="draft"))
    assert (newest(agent).number, agent.status) == (2, "draft")


def test_the_page_tells_how_far_it_is(
    admin_client: Client, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "RESULTS", 2)
    tier = tenant.tier
    kept, refused, gone = (make_agent(tenant, model=name) for name in ("echo", "long", "echo"))
    task = ask(admin_client, [kept, refused, gone], config_max_turns="3")
    shown = admin_client.get(page(task.pk))
    assert page(task.pk, "figures") in shown.content.decode()
    assert page(task.pk, "cancel") in shown.content.decode()
    assert (shown.context["counts"].total, shown.context["counts"].done) == (3, 0)
    assert not shown.context["over"]

    tier.allowed_models = ["echo"]
    tier.save()
    with tenant_scope(tenant.pk):
        execute(AgentDeleteAction(agent_id=gone.pk, actor="somebody"))
    work(task)
    figures = admin_client.get(page(task.pk, "figures"))
    assert figures.context["counts"].model_dump() == {"total": 3, "done": 3, "succeeded": 1, "failed": 2}
    html = figures.content.decode()
    assert "data-over" in html
    # The two that failed come first, with why; the one that is left is on the next page.
    assert "The tier Tier does not allow this model." in html
    assert "Agent not found." in html
    assert str(gone.pk) in html
    assert reverse("admin:agents_agent_change", args=[refused.pk]) in html
    assert reverse("admin:agents_agent_change", args=[kept.pk]) not in html
    following = admin_client.get(page(task.pk, "figures"), {"p": "2"}).content.decode()
    assert reverse("admin:agents_agent_change", args=[kept.pk]) in following
    assert "core/refresh.js" not in admin_client.get(page(task.pk)).content.decode()


def test_it_is_cancelled(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    task = ask(admin_client, [agent], config_max_turns="3")
    assert admin_client.get(page(task.pk, "cancel")).status_code == 405
    answer = admin_client.post(page(task.pk, "cancel"), follow=True)
    assert "It stops" in told(answer)
    task.refresh_from_db()
    assert (task.status, task.cancelled_by) == ("cancelled", "user:admin")
    work(task)
    assert newest(agent).number == 1
    again = admin_client.post(page(task.pk, "cancel"), follow=True)
    assert "Cannot cancel" in told(again)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "__all__"),
        ({"hold": "on", "note": "Nothing"}, "__all__"),
        ({"config_max_turns": "0"}, "config_max_turns"),
        ({"config_model": "two words"}, "config_model"),
        ({"config_fallback_provider": "scripted"}, "config_fallback_model"),
        ({"type": "x" * 65}, "type"),
        ({"type": "clerk", "note": "x" * 501}, "note"),
        ({"config_max_turns": "many"}, "config_max_turns"),
    ],
)
def test_what_fits_no_agent_comes_back_with_its_reason(
    admin_client: Client, tenant: Tenant, fields: dict[str, str], field: str
) -> None:
    agent = make_agent(tenant)
    answer = fill(admin_client, [agent], **fields)
    assert answer.status_code == 200
    assert list(answer.context["form"].errors) == [field]
    assert not Task.unscoped.filter(tenant=tenant, action=AgentBulkUpdateAction.verb).exists()
    # The selection is still there.
    assert answer.context["form"]["agents"].value() == str(agent.pk)


def test_agents_of_several_tenants_are_refused(admin_client: Client, tenant: Tenant) -> None:
    mine, other = make_agent(tenant), make_agent(make_tenant())
    answer = select(admin_client, [mine, other])
    assert answer.status_code == 302
    assert "one tenant" in told(admin_client.get(LIST))
    # Nor by hand.
    ids = f"{mine.pk},{other.pk}"
    assert admin_client.post(FORM, {"agents": ids, "type": "clerk"})["Location"] == LIST
    assert not Task.unscoped.filter(action=AgentBulkUpdateAction.verb).exists()


def test_deleted_and_too_many_are_refused(
    admin_client: Client, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = [make_agent(tenant) for _ in range(2)]
    monkeypatch.setattr(bulk, "MOST_NAMED", 1)
    select(admin_client, agents)
    assert "at most 1 agents" in told(admin_client.get(LIST))
    with tenant_scope(tenant.pk):
        execute(AgentDeleteAction(agent_id=agents[0].pk, actor="somebody"))
    select(admin_client, agents[:1], "?deleted=1")
    assert "Deleted agents do not change" in told(admin_client.get(LIST))


@pytest.mark.parametrize("sent", [{}, {"agents": ""}, {"agents": "x,y"}, {"agents": str(uuid.uuid4())}])
def test_without_agents_there_is_no_form(admin_client: Client, sent: dict[str, str]) -> None:
    assert admin_client.post(FORM, sent)["Location"] == LIST
    assert admin_client.get(FORM)["Location"] == LIST


def test_what_is_no_mass_update_is_not_found(admin_client: Client, tenant: Tenant) -> None:
    for task_id in (uuid.uuid4(), make_task(tenant).pk):
        for answer in (
            admin_client.get(page(task_id)),
            admin_client.get(page(task_id, "figures")),
            admin_client.post(page(task_id, "cancel")),
        ):
            assert answer["Location"] == LIST
    assert "Task not found." in told(admin_client.get(LIST))


def test_who_may_look_sees_it_and_does_nothing(admin_client: Client, client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    task = ask(admin_client, [agent], config_max_turns="3")
    clerk = User.objects.create_user("clerk", is_staff=True)
    client.force_login(clerk)
    for name in ("task", "figures"):
        assert client.get(page(task.pk, name)).status_code == 403
    Membership.unscoped.create(tenant=tenant, user=clerk, role=Role.VIEWER)
    shown = client.get(page(task.pk))
    assert shown.status_code == 200
    assert page(task.pk, "cancel") not in shown.content.decode()
    assert client.get(page(task.pk, "figures")).status_code == 200
    assert client.post(page(task.pk, "cancel")).status_code == 302  # as one that is not there
    task.refresh_from_db()
    assert task.cancelled_at is None
    assert client.post(FORM, {"agents": str(agent.pk), "type": "clerk"}).status_code == 403
    assert "change_several" not in client.get(LIST).content.decode()
    client.logout()
    for address in (FORM, page(task.pk), page(task.pk, "figures")):
        assert "/login/" in client.get(address)["Location"]


def test_the_pages_speak_spanish(admin_client: Client, tenant: Tenant) -> None:
    admin_client.defaults["HTTP_ACCEPT_LANGUAGE"] = "es"
    agent = make_agent(tenant)
    html = select(admin_client, [agent]).content.decode()
    for words in ("Cambiar varios agentes", "1 agente de", "Lo que se deja vacío", "Cambiarlos"):
        assert words in html, words
    task = ask(admin_client, [agent], config_max_turns="3")
    work(task)
    html = admin_client.get(page(task.pk)).content.decode()
    for words in ("Cambio masivo", "cambiados", "rechazados", "completada"):
        assert words in html, words
