"""Agents in the console: the verbs of agent management behind a form."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from agents.models import Agent, AgentTemplate, AgentVersion
from core.models import Tenant
from tests.factories import make_agent, make_session, make_tenant

ADD = reverse("admin:agents_agent_add")
INLINE = {"versions-TOTAL_FORMS": "0", "versions-INITIAL_FORMS": "0"}


def _change(agent: Agent) -> str:
    return reverse("admin:agents_agent_change", args=[agent.pk])


def _body(**fields: Any) -> dict[str, Any]:
    return {
        **INLINE,
        "name": "Help desk",
        "type": "assistant",
        "slug": "",
        "description": "",
        "status": "published",
        "config_provider": "openai",
        "config_model": "gpt-4.1-mini",
        "config_instructions": "Be kind.\r\nBe brief.",
        "config_greeting": "",
        "config_temperature": "0.2",
        "config_max_output_tokens": "",
        "config_context_tokens": "16000",
        "config_timeout_seconds": "",
        "config_max_turns": "10",
        "config_fallback_provider": "",
        "config_fallback_model": "",
        "config_multitask_strategy": "enqueue",
        "config_access": "public",
        **fields,
    }


def _versions(agent: Agent) -> list[AgentVersion]:
    return list(AgentVersion.unscoped.filter(agent=agent).order_by("number"))


def test_create_and_change_make_versions(admin_client: Client, tenant: Tenant) -> None:
    assert admin_client.post(ADD, _body(tenant=tenant.pk)).status_code == 302
    agent = Agent.unscoped.get(tenant=tenant)
    assert (agent.name, agent.slug, agent.status) == ("Help desk", "help-desk", "published")
    [first] = _versions(agent)
    assert (first.number, first.author) == (1, "user:admin")
    assert first.config["instructions"] == "Be kind.\nBe brief."
    assert first.config["temperature"] == 0.2
    assert "max_output_tokens" not in first.config

    # A new name alone is no new version.
    admin_client.post(_change(agent), _body(name="Desk", slug="help-desk"))
    assert [version.number for version in _versions(agent)] == [1]

    admin_client.post(_change(agent), _body(name="Desk", slug="help-desk", config_temperature=""))
    agent.refresh_from_db()
    versions = _versions(agent)
    assert [version.number for version in versions] == [1, 2]
    assert "temperature" not in versions[1].config
    assert (agent.name, agent.version) == ("Desk", versions[1])
    page = admin_client.get(_change(agent)).content.decode()
    assert "user:admin" in page
    assert "gpt-4.1-mini" in page


def test_saving_an_untouched_form_makes_no_version(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions="One\nTwo", temperature=0.5, timeout_seconds=12.5)
    form = admin_client.get(_change(agent)).context["adminform"].form
    body = {name: "" if (value := form[name].value()) is None else value for name in form.fields}
    assert admin_client.post(_change(agent), {**INLINE, **body}).status_code == 302
    assert len(_versions(agent)) == 1


def test_a_fallback_is_two_fields_that_belong_together(admin_client: Client, tenant: Tenant) -> None:
    half = _body(tenant=tenant.pk, config_fallback_provider="groq")
    page = admin_client.post(ADD, half)
    assert list(page.context["adminform"].form.errors) == ["config_fallback_model"]
    other_half = _body(tenant=tenant.pk, config_fallback_model="llama")
    page = admin_client.post(ADD, other_half)
    assert list(page.context["adminform"].form.errors) == ["config_fallback_provider"]
    both = half | {"config_fallback_model": "llama", "config_restart_after_fault": "on"}
    assert admin_client.post(ADD, both).status_code == 302
    agent = Agent.unscoped.get(tenant=tenant)
    [version] = _versions(agent)
    assert version.config["fallback"] == {"provider": "groq", "model": "llama"}
    assert version.config["restart_after_fault"] is True

    form = admin_client.get(_change(agent)).context["adminform"].form
    assert form["config_fallback_model"].value() == "llama"
    admin_client.post(_change(agent), _body(slug="help-desk"))
    assert "fallback" not in _versions(agent)[-1].config
    assert len(_versions(agent)) == 2


def test_a_version_from_before_a_field_was_known_can_be_edited(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    old = {"provider": "scripted", "model": "echo"}
    AgentVersion.unscoped.filter(agent=agent).update(config=old)
    form = admin_client.get(_change(agent)).context["adminform"].form
    assert form["config_multitask_strategy"].value() == "enqueue"
    body = {name: "" if (value := form[name].value()) is None else value for name in form.fields}
    del body["config_restart_after_fault"]  # as a browser does with a box that is not ticked
    assert admin_client.post(_change(agent), {**INLINE, **body}).status_code == 302
    assert len(_versions(agent)) == 1


def test_the_tier_refuses_in_the_words_of_the_api(admin_client: Client) -> None:
    tenant = make_tenant(allowed_models=["gpt-4.1-mini"])
    page = admin_client.post(ADD, _body(tenant=tenant.pk, config_model="gpt-9"))
    assert page.status_code == 200
    message = "The tier Tier does not allow this model."
    assert page.context["adminform"].form.errors == {"config_model": [message]}
    assert not Agent.unscoped.filter(tenant=tenant).exists()

    agent = make_agent(tenant, model="gpt-4.1-mini")
    page = admin_client.post(_change(agent), _body(name="New name", config_model="gpt-9"))
    assert page.context["adminform"].form.errors == {"config_model": [message]}
    fallback = {"config_fallback_provider": "groq", "config_fallback_model": "gpt-9"}
    page = admin_client.post(_change(agent), _body(name="New name", **fallback))
    assert page.context["adminform"].form.errors == {"config_fallback_model": [message]}
    agent.refresh_from_db()
    assert agent.name == "Test agent"
    assert len(_versions(agent)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config_temperature", "3"),
        ("config_max_turns", "0"),
        ("config_model", "two words"),
        ("config_provider", "nobody"),
        ("slug", "Not A Slug"),
        ("type", "x" * 65),
        ("name", "   "),
    ],
)
def test_a_wrong_value_is_told_at_its_field(
    admin_client: Client, tenant: Tenant, field: str, value: str
) -> None:
    page = admin_client.post(ADD, _body(tenant=tenant.pk, **{field: value}))
    assert page.status_code == 200
    assert list(page.context["adminform"].form.errors) == [field]
    assert not Agent.unscoped.filter(tenant=tenant).exists()


def test_a_taken_slug_is_told_at_its_field(admin_client: Client, tenant: Tenant) -> None:
    make_agent(tenant, slug="desk")
    page = admin_client.post(ADD, _body(tenant=tenant.pk, slug="desk"))
    assert page.context["adminform"].form.errors == {"slug": ["Another agent of the tenant has this slug."]}
    other = make_tenant()
    assert admin_client.post(ADD, _body(tenant=other.pk, slug="desk")).status_code == 302


def test_a_deleted_agent_leaves_the_list_and_keeps_its_history(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, slug="gone")
    session = make_session(agent)
    delete = reverse("admin:agents_agent_delete", args=[agent.pk])
    assert admin_client.get(delete).status_code == 200
    assert admin_client.post(delete, {"post": "yes"}).status_code == 302
    agent.refresh_from_db()
    assert agent.deleted_at is not None
    assert len(_versions(agent)) == 1
    session.refresh_from_db()
    listed = admin_client.get(reverse("admin:agents_agent_changelist")).content.decode()
    assert str(agent.pk) not in listed
    assert admin_client.get(_change(agent)).status_code == 200
    assert admin_client.post(_change(agent), _body()).status_code == 403

    kept = make_agent(tenant)
    rows = {"action": "delete_selected", "_selected_action": [str(kept.pk)], "post": "yes"}
    admin_client.post(reverse("admin:agents_agent_changelist"), rows)
    kept.refresh_from_db()
    assert kept.deleted_at is not None


def test_a_template_has_the_same_fields(admin_client: Client, tenant: Tenant) -> None:
    body = _body(slug="desk", tenant="")
    assert admin_client.post(reverse("admin:agents_agenttemplate_add"), body).status_code == 302
    template = AgentTemplate.objects.get(slug="desk")
    assert template.tenant is None
    assert template.config["temperature"] == 0.2
    change = reverse("admin:agents_agenttemplate_change", args=[template.pk])
    page = admin_client.post(change, {**body, "config_temperature": "9"})
    assert list(page.context["adminform"].form.errors) == ["config_temperature"]
