"""The pages as the server gives them; what the script in them does is tested by `make pages`."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.test import Client

from agents.actions import AgentCreateAction, AgentDeleteAction, AgentResource, AgentUpdateAction
from core.actions.bus import execute
from core.models import Tenant
from core.tenancy import tenant_scope

# There is no collected folder of static files here, and none is needed.
pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]

HOSTILE = """<script>alert(1)</script>"'&<img src=x onerror=alert(1)>{{ 7|add:7 }}"""


class Tags(HTMLParser):
    """Every element of a page with its attributes, and the page's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def make_agent(tenant: Tenant, **fields: Any) -> AgentResource:
    config = {"provider": "scripted", "model": "echo", "greeting": fields.pop("greeting", "")}
    with tenant_scope(tenant.pk):
        fields = {"name": "Ada", "type": "assistant", "actor": "test"} | fields
        return execute(AgentCreateAction(config=config, **fields))


def config_of(page: Tags) -> dict[str, Any]:
    [config] = [attrs["data-config"] for _, attrs in page.found if attrs.get("data-config")]
    found: dict[str, Any] = json.loads(config or "")
    return found


def test_a_published_agent_has_a_page_with_its_name_and_greeting(tenant: Tenant, client: Client) -> None:
    agent = make_agent(tenant, greeting="Good morning.\nWhat is it?")
    response = client.get(f"/chat/{agent.agent_id}")
    assert response.status_code == 200
    assert response["Content-Type"] == "text/html; charset=utf-8"
    page = Tags(response.text)
    assert re.search(r"<title>\s*Ada\s*</title>", response.text)
    assert "Good morning.\nWhat is it?" in page.text
    config = config_of(page)
    assert config["agent_id"] == str(agent.agent_id)
    assert config["sockets"] == f"ws://testserver/ws/{tenant.pk}/"


def test_behind_https_the_sockets_are_secure_too(tenant: Tenant, client: Client) -> None:
    agent = make_agent(tenant)
    response = client.get(f"/chat/{agent.agent_id}", secure=True)
    assert config_of(Tags(response.text))["sockets"] == f"wss://testserver/ws/{tenant.pk}/"
    assert "connect-src 'self' wss://testserver;" in response["Content-Security-Policy"]


def test_a_new_name_is_shown_at_once(tenant: Tenant, client: Client) -> None:
    agent = make_agent(tenant)
    assert "Ada" in client.get(f"/chat/{agent.agent_id}").text
    with tenant_scope(tenant.pk):
        execute(AgentUpdateAction(agent_id=agent.agent_id, name="Grace", actor="test"))
    text = client.get(f"/chat/{agent.agent_id}").text
    assert "Grace" in text
    assert "Ada" not in text


def test_hostile_names_and_greetings_are_text(tenant: Tenant, client: Client) -> None:
    agent = make_agent(tenant, name=HOSTILE, greeting=HOSTILE)
    page = Tags(client.get(f"/chat/{agent.agent_id}").text)
    assert page.text.count(HOSTILE) == 3  # title, heading, greeting
    assert config_of(page)["agent_name"] == HOSTILE
    assert [tag for tag, _ in page.found if tag in ("img", "script")] == ["script"]


def test_nothing_in_the_page_needs_more_than_the_policy_allows(tenant: Tenant, client: Client) -> None:
    agent = make_agent(tenant)
    for path in (f"/chat/{agent.agent_id}", "/chat/nobody", "/"):
        response = client.get(path)
        policy = dict(part.split(" ", 1) for part in response["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["img-src"] == "'self'"
        assert policy["connect-src"] == "'self' ws://testserver"
        assert policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["frame-ancestors"] == "'self'"
        for tag, attrs in Tags(response.text).found:
            assert not [name for name in attrs if name == "style" or name.startswith("on")]
            assert tag != "style"
            if tag == "script":
                assert (attrs["src"] or "").startswith("/static/")


@pytest.mark.parametrize(
    "path", ["nobody", "0", "%00", "a" * 2000, "00000000-0000-0000-0000-000000000000", "é"]
)
def test_an_agent_that_is_none_gets_a_page_that_says_so(path: str, client: Client) -> None:
    response = client.get(f"/chat/{path}")
    assert response.status_code == 404
    assert "<h1>Agent not found</h1>" in response.text


def test_drafts_and_deleted_agents_have_no_page(tenant: Tenant, client: Client) -> None:
    draft, gone = make_agent(tenant, draft=True), make_agent(tenant)
    with tenant_scope(tenant.pk):
        execute(AgentDeleteAction(agent_id=gone.agent_id, actor="test"))
    assert client.get(f"/chat/{draft.agent_id}").status_code == 404
    assert client.get(f"/chat/{gone.agent_id}").status_code == 404


def test_only_reading_is_possible(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    client = Client(enforce_csrf_checks=True)
    assert client.head(f"/chat/{agent.agent_id}").status_code == 200
    response = client.post(f"/chat/{agent.agent_id}")
    assert response.status_code == 405
    assert response.json()["error"]["type"] == "MethodNotAllowed"


def test_the_page_speaks_the_readers_language(tenant: Tenant, client: Client) -> None:
    agent = make_agent(tenant)
    english = client.get(f"/chat/{agent.agent_id}", headers={"accept-language": "de, en;q=0.5"})
    spanish = client.get(f"/chat/{agent.agent_id}", headers={"accept-language": "es-AR, en;q=0.5"})
    assert '<html lang="en">' in english.text
    assert '<html lang="es">' in spanish.text
    assert "Accept-Language" in spanish["Vary"]
    for text in ("Nueva conversación", "Enviar", "Escriba un mensaje"):
        assert text in spanish.text
        assert text not in english.text
    ours, theirs = (config_of(Tags(page.text))["strings"] for page in (english, spanish))
    assert ours.keys() == theirs.keys()
    assert not [name for name, text in theirs.items() if text == ours[name]]


def test_no_cookie_is_set(tenant: Tenant, client: Client) -> None:
    agent = make_agent(tenant)
    assert not client.get(f"/chat/{agent.agent_id}").cookies


def test_the_front_page_leads_on(client: Client) -> None:
    response = client.get("/")
    assert response.status_code == 200
    links = [attrs["href"] for tag, attrs in Tags(response.text).found if tag == "a"]
    assert links == ["/admin/", "/api/docs"]


def test_the_favicon_is_found_under_its_usual_name(client: Client) -> None:
    response = client.get("/favicon.ico")
    assert response.status_code == 302
    assert response["Location"] == "/static/orchestrator/favicon.svg"


def test_the_script_makes_nodes_and_never_markup() -> None:
    """The policy's Trusted Types enforce it too, in the browsers that know them."""
    script = finders.find("orchestrator/chat.js")
    assert script is not None
    source = Path(script).read_text()
    for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert danger not in source
