"""What one does with an agent's versions in the console, and two people at one form."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django.utils import translation

from agents.actions import AgentUpdateAction
from agents.models import Agent, AgentVersion
from core.actions.bus import execute
from core.models import AuditEntry, Tenant
from core.models.membership import Membership, Role
from core.tenancy import tenant_scope
from tests.factories import make_agent, make_tenant

pytestmark = pytest.mark.django_db(transaction=True)

INLINE = {"versions-TOTAL_FORMS": "0", "versions-INITIAL_FORMS": "0"}


def page(agent: Agent, name: str) -> str:
    return reverse(f"admin:agents_agent_{name}", args=[agent.pk])


def filled(response: Any, **changes: Any) -> dict[str, Any]:
    """What a browser sends of the form that it shows, after these changes."""
    form = response.context["adminform"].form
    sent: dict[str, Any] = dict(INLINE)
    for bound in form:
        shown = {bound.html_name: bound.value()}
        if bound.field.show_hidden_initial:
            shown[bound.html_initial_name] = (
                form.data[bound.html_initial_name] if form.is_bound else bound.initial
            )
        for name, value in shown.items():
            is_box = type(bound.field).__name__ == "BooleanField" and name == bound.html_name
            if is_box and value not in (True, "on", "True"):
                continue
            sent[name] = "on" if is_box else "" if value is None else value
    return sent | changes


def edit(agent: Agent, **fields: Any) -> None:
    with tenant_scope(agent.tenant_id):
        execute(AgentUpdateAction(agent_id=agent.pk, actor="somebody", **fields))


def versions(agent: Agent) -> list[AgentVersion]:
    return list(AgentVersion.unscoped.filter(agent=agent).order_by("number"))


# --- Two at once --------------------------------------------------------------------------------------


def test_the_form_carries_what_it_shows(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions='One "two"\nThree')
    html = admin_client.get(page(agent, "change")).content.decode()
    assert re.search(r'<input type="hidden" name="etag" value="1"', html)
    assert re.search(
        r'<input type="hidden" name="initial-config_instructions" value="One &quot;two&quot;\nThree"', html
    )


def test_the_second_of_two_editors_is_told_and_loses_nothing(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions="One\nTwo", temperature=0.5)
    mine = admin_client.get(page(agent, "change"))
    # Meanwhile somebody else changes the temperature, the instructions and the name.
    edit(agent, name="Theirs", config={"temperature": 1.5, "instructions": "One\nTheir two"})

    sent = filled(mine, config_instructions="One\r\nMy two", config_max_turns="7", note="Because")
    refused = admin_client.post(page(agent, "change"), sent)
    assert refused.status_code == 200
    assert len(versions(agent)) == 2
    html = refused.content.decode()
    assert "Somebody else has changed this agent meanwhile" in html
    meanwhile = {change["field"]: change for change in refused.context["meanwhile"]}
    assert meanwhile.keys() == {"name", "published_version", "config.temperature", "config.instructions"}
    assert "+Their two" in html
    # The form: their changes, with mine on top, my words about it, and no switch turned by itself.
    form = refused.context["adminform"].form
    assert form["name"].value() == "Theirs"
    assert form["config_temperature"].value() == 1.5
    assert form["config_instructions"].value().replace("\r", "") == "One\nMy two"
    assert form["config_max_turns"].value() == "7"
    assert (form["note"].value(), form["etag"].value()) == ("Because", "2")

    saved = admin_client.post(page(agent, "change"), filled(refused))
    assert saved.status_code == 302
    agent.refresh_from_db()
    newest = versions(agent)[-1]
    assert (agent.name, newest.number, newest.note) == ("Theirs", 3, "Because")
    assert newest.config["instructions"] == "One\nMy two"
    assert (newest.config["temperature"], newest.config["max_turns"]) == (1.5, 7)


def test_a_third_who_is_faster_is_told_again(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    shown = admin_client.get(page(agent, "change"))
    sent = filled(shown, config_max_turns="7")
    for turn in range(3):
        edit(agent, description=f"Change {turn}")
        shown = admin_client.post(page(agent, "change"), sent)
        assert shown.status_code == 200
        sent = filled(shown)
    assert admin_client.post(page(agent, "change"), sent).status_code == 302
    agent.refresh_from_db()
    assert agent.description == "Change 2"
    assert versions(agent)[-1].config["max_turns"] == 7


def test_switches_survive_the_second_try(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, restart_after_fault=True)
    shown = admin_client.get(page(agent, "change"))
    edit(agent, config={"restart_after_fault": False})
    refused = admin_client.post(page(agent, "change"), filled(shown, name="Mine", hold="on"))
    sent = filled(refused)
    assert "config_restart_after_fault" not in sent
    assert sent["hold"] == "on"
    assert admin_client.post(page(agent, "change"), sent).status_code == 302
    agent.refresh_from_db()
    assert (agent.name, agent.version_id) == ("Mine", versions(agent)[-1].pk)
    assert versions(agent)[-1].config["restart_after_fault"] is False


def test_what_a_person_has_not_touched_is_not_sent(admin_client: Client, tenant: Tenant) -> None:
    """Browsers send other line ends than the API stores: that alone is no change."""
    agent = make_agent(tenant, instructions="One\nTwo")
    edit(agent, description="First\nSecond")
    sent = filled(admin_client.get(page(agent, "change")))
    sent = {name: str(value).replace("\n", "\r\n") for name, value in sent.items()}
    assert admin_client.post(page(agent, "change"), sent).status_code == 302
    agent.refresh_from_db()
    assert (agent.description, agent.edits, len(versions(agent))) == ("First\nSecond", 1, 1)


def test_a_held_change_waits_for_its_button(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    shown = admin_client.get(page(agent, "change"))
    assert page(agent, "publish") not in shown.content.decode()
    admin_client.post(page(agent, "change"), filled(shown, config_max_turns="7", hold="on"))
    agent.refresh_from_db()
    assert [version.pk for version in versions(agent)] == [agent.published_id, agent.version_id]

    shown = admin_client.get(page(agent, "change"))
    assert page(agent, "publish") in shown.content.decode()
    assert shown.context["adminform"].form["hold"].value() is True
    # A change of something else publishes nothing, whatever the switch says.
    sent = filled(shown, name="Grace")
    sent.pop("hold")
    admin_client.post(page(agent, "change"), sent)
    agent.refresh_from_db()
    assert (agent.name, agent.published_id) == ("Grace", versions(agent)[0].pk)

    admin_client.post(page(agent, "publish"))
    agent.refresh_from_db()
    assert agent.published_id == agent.version_id


# --- History ------------------------------------------------------------------------------------------


def test_the_history_shows_who_when_and_why(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    edit(agent, config={"max_turns": 3}, note="Fewer <turns>")
    html = admin_client.get(page(agent, "change")).content.decode()
    assert "somebody" in html
    assert "Fewer &lt;turns&gt;" in html
    assert (
        f"{page(agent, 'compare')}?from=1&amp;to=2" in html or f"{page(agent, 'compare')}?from=1&to=2" in html
    )


def test_two_versions_are_compared_and_one_is_gone_back_to(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions="<b>One</b>\nTwo")
    edit(agent, config={"instructions": "<b>One</b>\nThree", "temperature": 0.5})
    shown = admin_client.get(page(agent, "compare"))
    html = shown.content.decode()
    assert [change["field"] for change in shown.context["changes"]] == [
        "config.instructions",
        "config.temperature",
    ]
    assert "-Two" in html
    assert "+Three" in html
    assert "<b>One" not in html
    assert page(agent, "rollback") in html

    answer = admin_client.post(page(agent, "rollback"), {"version": "1", "note": "Better"}, follow=True)
    assert "Version 3 has the configuration of version 1." in answer.content.decode()
    assert [version.note for version in versions(agent)][2] == "Back to version 1: Better"
    assert versions(agent)[2].author == "user:admin"

    same = admin_client.get(page(agent, "compare"), {"from": "1", "to": "3"})
    assert same.context["changes"] == []
    missing = admin_client.get(page(agent, "compare"), {"from": "1", "to": "99"})
    assert "The agent has no such version." in missing.content.decode()
    assert admin_client.get(page(agent, "compare"), {"from": "x", "to": "9" * 40}).status_code == 200


@pytest.mark.parametrize(
    "sent", [{}, {"version": "x"}, {"version": "99"}, {"version": "1", "note": "x" * 501}]
)
def test_a_rollback_that_cannot_be_is_told(
    admin_client: Client, tenant: Tenant, sent: dict[str, str]
) -> None:
    agent = make_agent(tenant)
    answer = admin_client.post(page(agent, "rollback"), sent, follow=True)
    assert [str(message.level_tag) for message in answer.context["messages"]] == ["error"]
    assert len(versions(agent)) == 1
    assert admin_client.get(page(agent, "rollback")).status_code == 405


# --- Copies -------------------------------------------------------------------------------------------


def test_duplicate_archive_and_restore(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, slug="reception")
    answer = admin_client.post(page(agent, "duplicate"), follow=True)
    copy = Agent.unscoped.exclude(pk=agent.pk).get(tenant=tenant)
    assert page(copy, "change") in answer.content.decode()

    admin_client.post(page(agent, "delete"), {"post": "yes"})
    listed = reverse("admin:agents_agent_changelist")
    assert str(agent.pk) not in admin_client.get(listed).content.decode()
    assert str(agent.pk) in admin_client.get(listed, {"deleted": "1"}).content.decode()
    assert str(copy.pk) not in admin_client.get(listed, {"deleted": "1"}).content.decode()
    assert page(agent, "restore") in admin_client.get(page(agent, "change")).content.decode()
    admin_client.post(page(agent, "restore"))
    agent.refresh_from_db()
    assert agent.deleted_at is None
    assert page(agent, "restore") not in admin_client.get(page(agent, "change")).content.decode()


def test_deleted_agents_are_not_offered(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    Agent.unscoped.filter(pk=agent.pk).update(name="Gone for good", deleted_at="2026-01-01T00:00:00Z")
    answer = admin_client.get(
        reverse("admin:autocomplete"),
        {"app_label": "conversations", "model_name": "session", "field_name": "agent", "term": "Gone"},
    )
    assert answer.json()["results"] == []


def test_an_agent_is_exported_and_imported(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant, slug="reception", instructions="Be kind.")
    answer = admin_client.get(page(agent, "export"))
    assert answer["Content-Disposition"] == 'attachment; filename="reception.json"'
    content = answer.content
    address = reverse("admin:agents_agent_import")
    assert admin_client.get(address).status_code == 200
    for how in ({"text": content.decode()}, {"file": SimpleUploadedFile("reception.json", content)}):
        other = make_tenant()
        done = admin_client.post(address, {"tenant": other.pk, **how})
        made = Agent.unscoped.get(tenant=other)
        assert (done.status_code, done["Location"]) == (302, page(made, "change"))
        assert json.loads(admin_client.get(page(made, "export")).content) == json.loads(content)
        entry = AuditEntry.unscoped.get(tenant=other, verb="agent.import")
        assert (entry.actor, entry.source) == ("user:admin", "admin")


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"text": "{"},
        {"text": "[]"},
        {"text": "null"},
        {"text": "{}"},
        {"text": '{"a": NaN}'},
        {"file": b"\xff\xfe"},
        {"file": b"{}", "text": "{}"},
    ],
)
def test_what_cannot_be_imported_is_told(admin_client: Client, tenant: Tenant, sent: dict[str, Any]) -> None:
    if "file" in sent:
        sent = sent | {"file": SimpleUploadedFile("x.json", sent["file"])}
    answer = admin_client.post(reverse("admin:agents_agent_import"), {"tenant": tenant.pk, **sent})
    assert answer.status_code == 200
    told = [str(message) for message in answer.context["messages"]]
    assert told or answer.context["form"].errors
    assert not Agent.unscoped.filter(tenant=tenant).exists()


# --- Who may ------------------------------------------------------------------------------------------


def test_who_may_look_may_compare_and_export_and_nothing_else(client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    edit(agent, config={"max_turns": 3}, publish=False)
    clerk = User.objects.create_user("clerk", is_staff=True)
    client.force_login(clerk)
    for name in ("compare", "export"):
        assert client.get(page(agent, name)).status_code == 302  # as of one that is not there
    Membership.unscoped.create(tenant=tenant, user=clerk, role=Role.VIEWER)
    shown = client.get(page(agent, "compare"))
    assert shown.status_code == 200
    assert page(agent, "rollback") not in shown.content.decode()
    assert client.get(page(agent, "export")).status_code == 200
    assert client.get(page(agent, "change")).status_code == 200
    for name in ("rollback", "publish", "duplicate", "restore"):
        assert client.post(page(agent, name), {"version": "1"}).status_code in (302, 403)
    assert client.get(reverse("admin:agents_agent_import")).status_code == 403
    assert client.post(reverse("admin:agents_agent_import"), {}).status_code == 403
    assert len(versions(agent)) == 2


def test_nobody_without_an_account_sees_anything(client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    for name in ("compare", "export", "rollback"):
        assert "/login/" in client.get(page(agent, name))["Location"]
    assert "/login/" in client.get(reverse("admin:agents_agent_import"))["Location"]


def test_the_pages_speak_spanish(admin_client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    edit(agent, config={"max_turns": 3})
    for address, words in (
        (page(agent, "compare"), ("Comparar", "Volver a la versión 1", "Campo")),
        (page(agent, "change"), ("Duplicar", "Exportar", "Publicar más tarde")),
        (reverse("admin:agents_agent_import"), ("Importar", "Archivo")),
    ):
        with translation.override("es"):
            html = admin_client.get(address, headers={"Accept-Language": "es"}).content.decode()
        for word in words:
            assert word in html, word
