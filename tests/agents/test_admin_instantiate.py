"""Agents made from templates in the console."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from agents.models import Agent, AgentTemplate
from core.models import AuditEntry, Tenant
from core.models.membership import Membership, Role
from tests.api import Api
from tests.factories import make_agent, make_tenant

pytestmark = pytest.mark.django_db(transaction=True)

CONFIG = {
    "provider": "scripted",
    "model": "echo",
    "instructions": "{{company}}|{{terms}}|{{tone}}|{{times}}|{{share}}|{{formal}}|{{asked}}",
}
VARIABLES = [
    {"name": "company", "label": "The company"},
    {"name": "terms", "type": "text", "default": "none\nat all"},
    {"name": "tone", "type": "choice", "choices": ["plain", "warm"], "default": "warm"},
    {"name": "times", "type": "number", "default": 2},
    {"name": "share", "type": "number"},
    {"name": "formal", "type": "boolean", "default": True},
    {"name": "asked", "type": "boolean"},
]
FILLED = {
    "name": "Desk",
    "slug": "",
    "variables_company": "Acme ",
    "variables_terms": "one\r\ntwo",
    "variables_tone": "plain",
    "variables_times": "2",
    "variables_share": "0.5",
    "variables_asked": "False",
    "config_provider": "",
    "config_model": "",
}


def make(tenant: Tenant | None = None, **fields: Any) -> AgentTemplate:
    fields = {"config": CONFIG, "variables": VARIABLES, **fields}
    return AgentTemplate.objects.create(
        tenant=tenant, slug=uuid.uuid4().hex[:12], name="The template", type="assistant", **fields
    )


def page(template: AgentTemplate) -> str:
    return reverse("admin:agents_agenttemplate_instantiate", args=[template.pk])


def errors(answer: Any) -> dict[str, list[str]]:
    assert answer.status_code == 200
    return {name: list(reasons) for name, reasons in answer.context["form"].errors.items()}


def test_the_template_leads_there(admin_client: Client) -> None:
    template = make()
    for address in (
        reverse("admin:agents_agenttemplate_change", args=[template.pk]),
        reverse("admin:agents_agenttemplate_changelist") + f"?q={template.slug}",
    ):
        assert f'href="{page(template)}"' in admin_client.get(address).content.decode()


def test_the_form_has_a_field_for_each_variable(admin_client: Client) -> None:
    form = admin_client.get(page(make())).context["form"]
    shown = {
        bound.name: (type(bound.field).__name__, bound.value(), bound.field.required)
        for bound in form
        if bound.name.startswith("variables_")
    }
    assert shown == {
        "variables_company": ("CharField", None, True),
        "variables_terms": ("TextField", "none\nat all", False),
        "variables_tone": ("ChoiceField", "warm", True),
        "variables_times": ("FloatField", 2, True),
        "variables_share": ("FloatField", None, True),
        "variables_formal": ("BooleanField", True, False),
        "variables_asked": ("YesOrNoField", None, True),
    }
    assert [form["variables_company"].label, form["variables_tone"].label] == ["The company", "tone"]
    assert form.fields["tenant"].required


def test_an_agent_is_made(admin_client: Client, tenant: Tenant) -> None:
    template = make(version=4)
    done = admin_client.post(page(template), FILLED | {"tenant": tenant.pk})
    agent = Agent.unscoped.get(tenant=tenant)
    address = reverse("admin:agents_agent_change", args=[agent.pk])
    assert (done.status_code, done["Location"]) == (302, address)
    assert agent.version is not None
    assert agent.version.config["instructions"] == "Acme |one\ntwo|plain|2|0.5|no|no"
    assert (agent.name, agent.slug, agent.status) == ("Desk", "desk", "published")
    assert (agent.template, agent.template_version) == (template, 4)
    assert agent.version.author == "user:admin"
    entry = AuditEntry.unscoped.get(tenant=tenant, verb="agent.create")
    assert (entry.actor, entry.source) == ("user:admin", "admin")


def test_what_is_left_empty_and_what_is_switched(admin_client: Client, tenant: Tenant) -> None:
    """A text that has a default may be emptied; the model may be another one."""
    switched = {"variables_terms": "", "variables_formal": "on", "variables_asked": "True", "draft": "on"}
    other = {"slug": "front", "config_model": "demo"}
    admin_client.post(page(make()), FILLED | switched | other | {"tenant": tenant.pk})
    agent = Agent.unscoped.get(tenant=tenant)
    assert agent.version is not None
    assert agent.version.config["instructions"] == "Acme ||plain|2|0.5|yes|yes"
    assert (agent.slug, agent.status, agent.version.config["model"]) == ("front", "draft", "demo")


def test_a_tenants_own_template_makes_agents_of_that_tenant(admin_client: Client, tenant: Tenant) -> None:
    template, other = make(tenant), make_tenant()
    assert "tenant" not in admin_client.get(page(template)).context["form"].fields
    admin_client.post(page(template), FILLED | {"tenant": other.pk})
    assert Agent.unscoped.get(template=template).tenant == tenant


@pytest.mark.parametrize(
    ("sent", "field", "tier"),
    [
        ({"variables_company": "x" * 501}, "variables.company", {}),
        ({"variables_times": "1e16"}, "variables.times", {}),
        ({"variables_terms": "x" * 24_001}, "variables.terms", {}),
        ({"name": "x" * 121}, "name", {}),
        ({"slug": "No Slug"}, "slug", {}),
        ({"slug": "taken"}, "slug", {}),
        ({"config_provider": "nobodys"}, "config.provider", {}),
        ({"config_model": "two words"}, "config.model", {}),
        ({}, "config.model", {"allowed_models": ["demo"]}),
        ({"config_model": "long"}, "config.model", {"allowed_models": ["echo"]}),
    ],
)
def test_the_api_and_the_form_refuse_in_the_same_words(
    admin_client: Client, sent: dict[str, str], field: str, tier: dict[str, Any]
) -> None:
    tenant = make_tenant(**tier)
    if field == "slug":
        make_agent(tenant, slug="taken")
    template = make()
    given = FILLED | sent
    values: dict[str, Any] = {
        "company": given["variables_company"],
        "terms": given["variables_terms"],
        "tone": given["variables_tone"],
        "times": float(given["variables_times"]),
        "share": 0.5,
        "asked": False,
    }
    config = {name: given[f"config_{name}"] for name in ("provider", "model") if given[f"config_{name}"]}
    body = {"name": given["name"], "variables": values, "config": config, "slug": given["slug"] or None}
    status = 409 if given["slug"] == "taken" else 422
    api = Api(tenant)
    error = api("POST", f"/api/v1/templates/{template.pk}/instantiate", body, expect=status)["error"]
    reason = error["details"][field] if status == 422 else error["message"]

    answer = admin_client.post(page(template), given | {"tenant": tenant.pk})
    assert errors(answer) == {field.replace(".", "_"): [reason]}
    assert not Agent.unscoped.filter(template=template).exists()


def test_a_required_variable_is_asked_for_in_the_apis_words(admin_client: Client, tenant: Tenant) -> None:
    template = make()
    answer = Api(tenant).refused("POST", f"/api/v1/templates/{template.pk}/instantiate", {"name": "x"})
    empty = {"variables_company": "", "variables_share": "", "variables_asked": ""}
    refused = errors(admin_client.post(page(template), FILLED | empty | {"tenant": tenant.pk}))
    assert refused == {field.replace(".", "_"): [reason] for field, reason in answer.items()}
    assert refused.keys() == empty.keys()


def test_what_no_field_stands_for_is_told_above(admin_client: Client) -> None:
    template = make(config=CONFIG | {"fallback": {"provider": "scripted", "model": "long"}})
    tenant = make_tenant(allowed_models=["demo"])
    refused = errors(admin_client.post(page(template), FILLED | {"tenant": tenant.pk}))
    assert refused.keys() == {"config_model", "__all__"}
    assert "config.fallback.model" in refused["__all__"][0]


def test_a_full_tier_is_told(admin_client: Client) -> None:
    tenant = make_tenant(max_agents=0)
    refused = errors(admin_client.post(page(make()), FILLED | {"tenant": tenant.pk}))
    assert "allows 0 agents" in refused["__all__"][0]


def test_no_such_template(admin_client: Client) -> None:
    template = make()
    address = page(template)
    template.delete()
    assert admin_client.get(address).status_code == 302
    assert admin_client.post(address, FILLED).status_code == 302


def test_it_needs_the_right_to_change(client: Client, tenant: Tenant) -> None:
    template = make()
    assert "/login/" in client.get(page(template))["Location"]
    clerk = User.objects.create_user("clerk", is_staff=True)
    client.force_login(clerk)
    belongs = None
    for _ in range(2):
        assert client.get(page(template)).status_code == 403
        assert client.post(page(template), FILLED | {"tenant": tenant.pk}).status_code == 403
        belongs = belongs or Membership.unscoped.create(tenant=tenant, user=clerk, role=Role.VIEWER)
    assert belongs is not None
    for address in ("changelist", "change"):
        args = [template.pk] if address == "change" else []
        shown = client.get(reverse(f"admin:agents_agenttemplate_{address}", args=args))
        assert shown.status_code == 200
        assert page(template) not in shown.content.decode()
    Membership.unscoped.filter(pk=belongs.pk).update(role=Role.EDITOR)
    foreign = client.post(page(template), FILLED | {"tenant": make_tenant().pk})
    assert list(foreign.context["form"].errors) == ["tenant"]
    assert client.post(page(template), FILLED | {"tenant": tenant.pk}).status_code == 302


def test_the_page_speaks_spanish(admin_client: Client) -> None:
    template = make()
    html = admin_client.get(page(template), headers={"Accept-Language": "es"}).content.decode()
    for word in ("Crear el agente", "El agente nuevo", "Otro modelo", "Variables", "Plantilla"):
        assert re.search(word, html), word
