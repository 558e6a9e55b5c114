"""Templates over HTTP, in the console, and those that come with the platform."""

from __future__ import annotations

import tomllib
import uuid
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from pydantic import ValidationError

from agents.management.commands.seed_templates import LIBRARY
from agents.models import Agent, AgentTemplate
from agents.template_actions import TemplateCreate, TemplateVariable
from agents.variables import placeholders
from core.models import AuditEntry, Notice, Tenant
from tests.api import Api
from tests.factories import make_tenant

TEMPLATES = "/api/v1/templates"
AGENTS = "/api/v1/agents"
CONFIG = {
    "provider": "scripted",
    "model": "echo",
    "instructions": "You work for {{company}} in {{ tone }} words, {{times}} times: {{formal}}. "
    "It is {{date}}.",
    "greeting": "Welcome to {{company}}",
}
VARIABLES = [
    {"name": "company", "label": "Company"},
    {"name": "tone", "type": "choice", "choices": ["plain", "warm"], "default": "plain"},
    {"name": "times", "type": "number", "default": 2},
    {"name": "formal", "type": "boolean", "default": False},
]


def body(**fields: Any) -> dict[str, Any]:
    return {"name": "Desk", "type": "assistant", "config": CONFIG, "variables": VARIABLES, **fields}


@pytest.fixture
def api(tenant: Tenant) -> Api:
    return Api(tenant)


def make(api: Api, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = api("POST", TEMPLATES, body(**fields), expect=201)
    return made


def share(**fields: Any) -> AgentTemplate:
    """One of everybody's."""
    return AgentTemplate.objects.create(
        slug=uuid.uuid4().hex[:12],
        name="Shared",
        type="assistant",
        config=CONFIG,
        variables=VARIABLES,
        **fields,
    )


def test_a_template_is_made_read_changed_and_deleted(api: Api) -> None:
    made = make(api, category="support", description="Answers")
    assert (made["shared"], made["slug"], made["version"]) == (False, "desk", 1)
    assert (made["category"], made["description"]) == ("support", "Answers")
    assert made["config"].items() >= CONFIG.items()
    assert [variable["name"] for variable in made["variables"]] == ["company", "tone", "times", "formal"]
    path = f"{TEMPLATES}/{made['template_id']}"
    assert api("GET", path) == made
    renamed = api("PATCH", path, {"name": "Front desk", "slug": "front"})
    assert (renamed["name"], renamed["slug"], renamed["version"]) == ("Front desk", "front", 1)
    changed = api("PATCH", path, {"config": {"temperature": 1}})
    assert (changed["version"], changed["config"]) == (2, made["config"] | {"temperature": 1})
    assert api("PATCH", path, {"config": {"temperature": 1}})["version"] == 2
    fewer = api("PATCH", path, {"config": {"instructions": "Hi", "greeting": ""}, "variables": []})
    assert (fewer["version"], fewer["variables"]) == (3, [])
    api("DELETE", path, expect=204)
    for method, sent in (("GET", None), ("PATCH", {}), ("DELETE", None)):
        assert api(method, path, sent, expect=404)["error"]["type"] == "TemplateNotFound"


def test_every_change_is_on_record_and_told(api: Api, tenant: Tenant) -> None:
    made = make(api)
    path = f"{TEMPLATES}/{made['template_id']}"
    api("PATCH", path, {"name": "Front desk"})
    api("PATCH", path, {})
    api("DELETE", path, expect=204)
    entries = AuditEntry.unscoped.filter(tenant=tenant, object_type="template").order_by("pk")
    assert [entry.verb for entry in entries] == ["template.create", "template.update", "template.delete"]
    assert (entries[1].before, entries[1].after) == ({"name": "Desk"}, {"name": "Front desk"})
    assert entries[0].actor.startswith("key:")
    told = Notice.unscoped.filter(tenant=tenant).order_by("pk").values_list("event", flat=True)
    assert list(told) == ["template_created", "agent_template_created", "template_updated"]


def test_a_made_slug_that_is_taken_gets_a_suffix_a_given_one_is_refused(api: Api) -> None:
    first, second = make(api), make(api)
    assert first["slug"] == "desk" != second["slug"]
    assert api("POST", TEMPLATES, body(slug="desk"), expect=409)["error"]["type"] == "TemplateSlugTaken"
    path = f"{TEMPLATES}/{second['template_id']}"
    assert api("PATCH", path, {"slug": "desk"}, expect=409)["error"]["type"] == "TemplateSlugTaken"
    assert make(Api(make_tenant()), slug="desk")["slug"] == "desk"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": ""}, "name"),
        ({"nonsense": 1}, "nonsense"),
        ({"shared": True}, "shared"),
        ({"version": 3}, "version"),
        ({"category": "x" * 41}, "category"),
        ({"config": {"provider": "scripted"}}, "config.model"),
        ({"config": CONFIG | {"greeting": "{{nobody}}"}}, "config.greeting"),
        ({"config": CONFIG | {"model": "{{model}}"}}, "config.model"),
        ({"variables": [{"name": "company"}] * 2 + VARIABLES[1:]}, "variables"),
        ({"variables": [{"name": "Company"}]}, "variables.0.name"),
        ({"variables": [{"name": "date"}]}, "variables.0"),
        ({"variables": [{"name": "x", "type": "choice"}]}, "variables.0"),
        ({"variables": [{"name": "x", "type": "number", "default": "2"}]}, "variables.0"),
        ({"variables": [{"name": "x", "type": "list"}]}, "variables.0.type"),
        ({"variables": [{"name": "x", "nonsense": 1}]}, "variables.0.nonsense"),
    ],
)
def test_a_bad_template_is_named(api: Api, fields: dict[str, Any], named: str) -> None:
    assert named in api.refused("POST", TEMPLATES, body(**fields))
    assert not AgentTemplate.objects.exists()


def test_a_change_is_checked_as_a_whole(api: Api) -> None:
    made = make(api)
    path = f"{TEMPLATES}/{made['template_id']}"
    assert api.refused("PATCH", path, {"variables": VARIABLES[1:]}) == {
        "config.greeting": "There is no variable company.",
        "config.instructions": "There is no variable company.",
    }
    assert "config.temperature" in api.refused("PATCH", path, {"config": {"temperature": 3}})
    assert "shared" in api.refused("PATCH", path, {"shared": True})
    assert api("GET", path) == made


def test_an_agent_is_made_from_a_template(api: Api) -> None:
    made = make(api, description="Answers")
    path = f"{TEMPLATES}/{made['template_id']}/instantiate"
    values = {"company": "Acme", "tone": "warm", "times": 2.5, "formal": True}
    agent = api("POST", path, {"name": "Reception", "variables": values}, expect=201)
    config = agent["config"]
    assert config["instructions"] == "You work for Acme in warm words, 2.5 times: yes. It is {{date}}."
    assert config["greeting"] == "Welcome to Acme"
    assert (agent["name"], agent["slug"], agent["type"]) == ("Reception", "reception", "assistant")
    assert (agent["status"], agent["description"]) == ("published", "Answers")
    assert agent["template"] == {"id": made["template_id"], "version": 1, "newer": False}
    assert api("GET", f"{AGENTS}/{agent['agent_id']}") == agent

    fields = {
        "name": "Desk",
        "type": "other",
        "description": "",
        "slug": "d",
        "draft": True,
        "variables": {"company": "Acme"},
        "config": {"model": "long", "greeting": "{{company}}"},
    }
    other = api("POST", path, fields, expect=201)
    assert (other["type"], other["description"], other["slug"], other["status"]) == (
        "other",
        "",
        "d",
        "draft",
    )
    assert other["config"]["instructions"].startswith("You work for Acme in plain words, 2 times: no.")
    # What the caller writes is the caller's own.
    assert (other["config"]["model"], other["config"]["greeting"]) == ("long", "{{company}}")


def test_a_value_never_brings_in_another_variable(api: Api) -> None:
    made = make(api)
    path = f"{TEMPLATES}/{made['template_id']}/instantiate"
    agent = api("POST", path, {"name": "A", "variables": {"company": "{{tone}} {% now %} {{"}}, expect=201)
    assert agent["config"]["greeting"] == "Welcome to {{tone}} {% now %} {{"


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({}, {"variables.company": "A value is required."}),
        ({"company": None}, {"variables.company"}),
        ({"company": "Acme", "nobody": "x"}, {"variables.nobody": "The template has no such variable."}),
        ({"company": "Acme", "tone": "cold"}, {"variables.tone": "one of: plain, warm"}),
        ({"company": "Acme", "times": "2"}, {"variables.times": "a number"}),
        ({"company": "Acme", "times": True}, {"variables.times": "a number"}),
        ({"company": "Acme", "times": 1e16}, {"variables.times": "a number"}),
        ({"company": "Acme", "formal": "no"}, {"variables.formal": "true or false"}),
        ({"company": "Acme", "formal": 1}, {"variables.formal": "true or false"}),
        ({"company": "two\nlines"}, {"variables.company": "one line"}),
        ({"company": "x" * 501}, {"variables.company": "at most 500 characters"}),
        ({"company": 5}, {"variables.company": "a text"}),
        ({"company": ["x"]}, {"variables.company"}),
    ],
)
def test_a_bad_value_is_named(
    api: Api, variables: dict[str, Any], refused: dict[str, str] | set[str]
) -> None:
    path = f"{TEMPLATES}/{make(api)['template_id']}/instantiate"
    details = api.refused("POST", path, {"name": "Reception", "variables": variables})
    if isinstance(refused, set):
        assert all(any(name.startswith(field) for field in refused) for name in details)
    else:
        assert details == refused
    assert not Agent.unscoped.exists()


def test_what_is_made_must_fit_like_any_agent(db: None) -> None:
    tenant = make_tenant(allowed_models=["long"], max_agents=1)
    api = Api(tenant)
    path = f"{TEMPLATES}/{make(api)['template_id']}/instantiate"
    fields = {"name": "Reception", "variables": {"company": "Acme"}}
    assert api.refused("POST", path, fields) == {"config.model": "The tier Tier does not allow this model."}
    fitting = fields | {"config": {"model": "long"}}
    assert "config.temperature" in api.refused("POST", path, fields | {"config": {"temperature": 9}})
    assert "nonsense" in api.refused("POST", path, fields | {"nonsense": 1})
    api("POST", path, fitting, expect=201)
    assert api("POST", path, fitting, expect=409)["error"]["type"] == "TooManyAgents"


def test_an_agent_tells_that_its_template_has_changed(api: Api) -> None:
    made = make(api)
    path = f"{TEMPLATES}/{made['template_id']}"
    agent = api("POST", f"{path}/instantiate", {"name": "A", "variables": {"company": "Acme"}}, expect=201)
    address = f"{AGENTS}/{agent['agent_id']}"
    api("PATCH", path, {"name": "Renamed"})
    assert api("GET", address)["template"]["newer"] is False
    api("PATCH", path, {"config": {"temperature": 1}})
    told = {"id": made["template_id"], "version": 1, "newer": True}
    assert api("GET", address)["template"] == told
    assert api("GET", AGENTS)["items"][0]["template"] == told
    # It goes on as it is, and remembers where it is from when it changes.
    changed = api("PATCH", address, {"config": {"temperature": 0.5}})
    assert (changed["version"], changed["template"]) == (2, told)
    api("DELETE", path, expect=204)
    gone = api("GET", address)
    assert (gone["template"], gone["config"]) == (None, changed["config"])


def test_everybodys_templates_are_read_by_all_and_written_by_none(api: Api) -> None:
    shared = share()
    path = f"{TEMPLATES}/{shared.pk}"
    found = api("GET", path)
    assert (found["shared"], found["name"]) == (True, "Shared")
    for method, sent in (("PATCH", {"name": "Mine"}), ("DELETE", None)):
        assert api(method, path, sent, expect=404)["error"]["type"] == "TemplateNotFound"
    agent = api("POST", f"{path}/instantiate", {"name": "A", "variables": {"company": "A"}}, expect=201)
    assert agent["template"]["id"] == str(shared.pk)
    shared.refresh_from_db()
    assert shared.name == "Shared"


def test_another_tenants_template_is_like_one_that_does_not_exist(api: Api) -> None:
    theirs = make(Api(make_tenant()))
    mine = make(api)
    for template_id in (theirs["template_id"], str(uuid.uuid4()), "x", "1"):
        path = f"{TEMPLATES}/{template_id}"
        fields = {"name": "A", "variables": {"company": "A"}}
        for method, address, sent in (
            ("GET", path, None),
            ("PATCH", path, {"name": "Mine"}),
            ("DELETE", path, None),
            ("POST", f"{path}/instantiate", fields),
        ):
            answer = api(method, address, sent, expect=404)
            assert answer["error"] == {
                "type": "TemplateNotFound",
                "message": "Template not found.",
                "details": {},
            }
    assert [item["template_id"] for item in api("GET", TEMPLATES)["items"]] == [mine["template_id"]]


def test_templates_are_listed_in_pages_and_by_category(api: Api) -> None:
    names = [make(api, name=f"T{number}", category="ab"[number % 2])["name"] for number in range(3)]
    share(category="a")
    page = api("GET", f"{TEMPLATES}?limit=2")
    rest = api("GET", f"{TEMPLATES}?limit=2&cursor={page['next']}")
    assert rest["next"] is None
    assert [item["name"] for item in page["items"] + rest["items"]] == [*names, "Shared"]
    chosen = api("GET", f"{TEMPLATES}?category=a")["items"]
    assert [item["name"] for item in chosen] == ["T0", "T2", "Shared"]
    assert api("GET", f"{TEMPLATES}?category=c")["items"] == []


def test_a_key_does_what_its_scopes_say(api: Api, tenant: Tenant) -> None:
    path = f"{TEMPLATES}/{make(api)['template_id']}"
    reader, stranger = Api(tenant, ("agents:read",)), Api(tenant, ("chat:read", "chat:write"))
    reader("GET", path)
    for method, address, sent in (
        ("POST", TEMPLATES, body()),
        ("PATCH", path, {}),
        ("DELETE", path, None),
        ("POST", f"{path}/instantiate", {"name": "A"}),
    ):
        error = reader(method, address, sent, expect=403)["error"]
        assert error["details"] == {"scope": "agents:write"}
    stranger("GET", path, expect=403)


# --- The console ------------------------------------------------------------------------------------


def form(**fields: Any) -> dict[str, Any]:
    return {
        "name": "Desk",
        "type": "assistant",
        "slug": "",
        "tenant": "",
        "category": "support",
        "description": "",
        "variables": '[{"name": "company"}]',
        "config_provider": "openai",
        "config_model": "gpt-4.1-mini",
        "config_instructions": "For {{company}}",
        "config_greeting": "",
        "config_temperature": "0.2",
        "config_context_tokens": "16000",
        "config_max_turns": "10",
        "config_multitask_strategy": "enqueue",
        "config_access": "public",
        **fields,
    }


def test_the_operator_writes_everybodys_templates(admin_client: Client) -> None:
    add = reverse("admin:agents_agenttemplate_add")
    assert admin_client.post(add, form()).status_code == 302
    template = AgentTemplate.objects.get()
    assert (template.tenant, template.slug, template.version) == (None, "desk", 1)
    assert template.variables[0]["name"] == "company"
    change = reverse("admin:agents_agenttemplate_change", args=[template.pk])
    untouched = form(slug="desk")
    assert admin_client.post(change, untouched).status_code == 302
    assert admin_client.post(change, untouched | {"config_temperature": "0.3"}).status_code == 302
    template.refresh_from_db()
    assert (template.version, template.config["temperature"]) == (2, 0.3)
    entries = AuditEntry.unscoped.filter(object_type="template").order_by("pk")
    assert [(entry.verb, entry.tenant_id, entry.actor) for entry in entries] == [
        ("template.create", None, "user:admin"),
        ("template.update", None, "user:admin"),
    ]
    assert not Notice.unscoped.exists()
    delete = reverse("admin:agents_agenttemplate_delete", args=[template.pk])
    assert admin_client.post(delete, {"post": "yes"}).status_code == 302
    assert not AgentTemplate.objects.exists()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"variables": "[{]"}, "variables"),
        ({"variables": '[{"name": "date"}]'}, "variables"),
        ({"variables": "5"}, "variables"),
        ({"config_instructions": "{{nobody}}"}, "config_instructions"),
        ({"config_temperature": "9"}, "config_temperature"),
        ({"slug": "Not A Slug"}, "slug"),
    ],
)
def test_a_wrong_value_is_told_at_its_field(admin_client: Client, fields: dict[str, str], field: str) -> None:
    page = admin_client.post(reverse("admin:agents_agenttemplate_add"), form(**fields))
    assert list(page.context["adminform"].form.errors) == [field]
    assert not AgentTemplate.objects.exists()


def test_the_console_shows_where_an_agent_is_from(admin_client: Client, api: Api) -> None:
    made = make(api)
    path = f"{TEMPLATES}/{made['template_id']}"
    agent = api("POST", f"{path}/instantiate", {"name": "A", "variables": {"company": "Acme"}}, expect=201)
    change = reverse("admin:agents_agent_change", args=[agent["agent_id"]])
    assert "Desk v1" in admin_client.get(change).content.decode()
    api("PATCH", path, {"config": {"temperature": 1}})
    assert "it is at version 2" in admin_client.get(change).content.decode()


# --- Those that come with the platform --------------------------------------------------------------

SHIPPED = sorted(LIBRARY.glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_template_is_whole(path: Any) -> None:
    template = TemplateCreate(slug=path.stem, **tomllib.loads(path.read_text()))
    named = placeholders(template.config.instructions) | placeholders(template.config.greeting)
    assert {variable.name for variable in template.variables} <= named
    assert template.category
    assert template.description
    assert all(variable.label for variable in template.variables)


def test_the_shipped_templates_are_made_once_and_edits_stay(db: None, api: Api) -> None:
    call_command("seed_templates", verbosity=0)
    assert len(SHIPPED) == 5
    assert {template.slug for template in AgentTemplate.objects.filter(tenant=None)} == {
        path.stem for path in SHIPPED
    }
    AgentTemplate.objects.filter(slug=SHIPPED[0].stem).update(name="Edited")
    call_command("seed_templates")
    assert AgentTemplate.objects.count() == 5
    assert AgentTemplate.objects.filter(name="Edited").exists()
    for item in api("GET", TEMPLATES)["items"]:
        given = {
            variable["name"]: "Acme"
            for variable in item["variables"]
            if variable["default"] is None and variable["type"] in ("string", "text")
        }
        path = f"{TEMPLATES}/{item['template_id']}/instantiate"
        agent = api("POST", path, {"name": item["name"], "variables": given}, expect=201)
        left = placeholders(agent["config"]["instructions"]) | placeholders(agent["config"]["greeting"])
        assert left <= {"date"}


def test_a_variables_default_fits_its_type() -> None:
    with pytest.raises(ValidationError, match="one line"):
        TemplateVariable(name="x", default="a\nb")
    assert TemplateVariable(name="x", type="text", default="a\nb").default == "a\nb"
    assert TemplateVariable(name="x", default="").default == ""
