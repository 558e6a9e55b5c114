"""Copies, documents, and the way back from deletion."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from pydantic import ValidationError

from agents.actions import (
    AgentDeleteAction,
    AgentDuplicateAction,
    AgentImportAction,
    AgentResource,
    AgentRestoreAction,
    AgentUpdateAction,
)
from agents.config import AgentConfig
from agents.document import AgentDocument, secret_slots
from agents.errors import AgentNotFound
from agents.models import Agent, AgentVersion
from agents.selectors import agent_document, agent_get
from core.actions.bus import execute
from core.errors import ValidationFailed
from core.models import AuditEntry, Tenant
from core.tenancy import tenant_scope
from tests.factories import make_agent, make_tenant

CONFIG: dict[str, Any] = {
    "provider": "scripted",
    "model": "echo",
    "instructions": "Be kind.\nÑandú 🦤 {{agent_name}}",
    "temperature": 0.1,
    "fallback": {"provider": "groq", "model": "llama"},
    "timeout_seconds": 12.5,
}


def exported(agent: Agent | AgentResource, tenant: Tenant) -> dict[str, Any]:
    agent_id = agent.pk if isinstance(agent, Agent) else agent.agent_id
    with tenant_scope(tenant.pk):
        text = agent_document(agent_get(agent_id)).model_dump_json()
    document: dict[str, Any] = json.loads(text)
    return document


def imported(document: dict[str, Any], tenant: Tenant) -> AgentResource:
    with tenant_scope(tenant.pk):
        return execute(AgentImportAction(document=AgentDocument(**document), actor="test"))


def act(agent: Agent, kind: Any, **fields: Any) -> Any:
    with tenant_scope(agent.tenant_id):
        return execute(kind(agent_id=agent.pk, actor="test", **fields))


# --- Documents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", [False, True])
def test_what_is_exported_comes_back_equal(tenant: Tenant, draft: bool) -> None:
    agent = make_agent(tenant, slug="reception", draft=draft, **CONFIG)
    act(agent, AgentUpdateAction, description="Answers.", config={"max_turns": 3}, note="For the fair")
    document = exported(agent, tenant)
    other = make_tenant()
    again = imported(document, other)
    assert (again.slug, again.version, again.status) == (
        "reception",
        1,
        "draft" if draft else "published",
    )
    assert again.agent_id != agent.pk
    assert exported(again, other) == document
    assert document["note"] == "For the fair"
    assert document["config"].items() >= CONFIG.items()


def test_a_slug_that_is_taken_gets_a_suffix_and_nothing_else_differs(tenant: Tenant) -> None:
    agent = make_agent(tenant, slug="x" * 40)
    document = exported(agent, tenant)
    slugs = {imported(document, tenant).slug for _ in range(3)}
    assert len(slugs) == 3
    for slug in slugs:
        assert slug != agent.slug
        again = exported(Agent.unscoped.get(slug=slug), tenant)
        assert again == document | {"slug": slug}
        assert len(slug) <= 40


def test_a_document_has_a_name_and_a_number_and_no_history(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    document = exported(agent, tenant)
    assert (document["format"], document["format_version"]) == ("nooble.agent", 1)
    assert document.keys() == {
        "format",
        "format_version",
        "name",
        "type",
        "slug",
        "description",
        "draft",
        "note",
        "config",
        "secrets",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"format": "somebody.else"},
        {"format_version": 2},
        {"format_version": "2"},
        {"nonsense": 1},
        {"name": ""},
        {"slug": "Not A Slug"},
        {"config": {}},
        {"config": {"provider": "scripted", "model": "echo", "nonsense": 1}},
        {"config": {"provider": "scripted", "model": "echo", "api_key": "sk-1"}},
        {"secrets": "provider:x"},
    ],
)
def test_what_is_no_document_of_ours(tenant: Tenant, change: dict[str, Any]) -> None:
    document = exported(make_agent(tenant), tenant)
    with pytest.raises(ValidationError):
        AgentDocument(**document | change)
    for needed in ("format", "format_version", "name", "type", "config"):
        with pytest.raises(ValidationError):
            AgentDocument(**{name: value for name, value in document.items() if name != needed})


def test_secrets_are_named_and_never_written() -> None:
    own = {"provider": "our-server", "model": "m", "fallback": {"provider": "groq", "model": "m"}}
    assert secret_slots(AgentConfig(**own)) == ("provider:our-server",)
    assert secret_slots(AgentConfig(**CONFIG)) == ()


def test_an_import_is_measured_like_a_new_agent(tenant: Tenant) -> None:
    document = exported(make_agent(tenant, **CONFIG), tenant)
    strict = make_tenant(allowed_models=["demo"])
    with pytest.raises(ValidationFailed) as refused, transaction.atomic():
        imported(document, strict)
    assert set(refused.value.details) == {"config.model", "config.fallback.model"}
    assert not Agent.unscoped.filter(tenant=strict).exists()


def test_an_import_is_on_record(tenant: Tenant) -> None:
    made = imported(exported(make_agent(make_tenant()), Agent.unscoped.get().tenant), tenant)
    [entry] = AuditEntry.unscoped.filter(tenant=tenant)
    assert (entry.verb, entry.object_id, entry.before) == ("agent.import", str(made.agent_id), {})


# --- Duplicates -------------------------------------------------------------------------------------


def test_a_duplicate_is_a_new_agent_with_the_newest_configuration(tenant: Tenant) -> None:
    agent = make_agent(tenant, slug="reception", **CONFIG)
    act(agent, AgentUpdateAction, config={"max_turns": 3}, publish=False)
    copy = act(agent, AgentDuplicateAction)
    assert copy.agent_id != agent.pk
    assert (copy.name, copy.version, copy.status, copy.published_version) == (
        "Test agent (copy)",
        1,
        "published",
        1,
    )
    assert copy.slug.startswith("reception-")
    assert copy.config == AgentConfig(**CONFIG | {"max_turns": 3})
    version = AgentVersion.unscoped.get(agent_id=copy.agent_id)
    assert (version.note, version.author) == ("Copy of reception, version 2", "test")
    assert AgentVersion.unscoped.filter(agent=agent).count() == 2


def test_a_duplicate_may_have_a_name_and_a_drafts_is_a_draft(tenant: Tenant) -> None:
    agent = make_agent(tenant, draft=True)
    copy = act(agent, AgentDuplicateAction, name="Second desk")
    assert (copy.name, copy.slug, copy.status) == ("Second desk", "second-desk", "draft")
    Agent.unscoped.filter(pk=agent.pk).update(name="x" * 120)
    assert len(act(agent, AgentDuplicateAction).name) == 120


def test_what_does_not_exist_here_is_not_duplicated(tenant: Tenant) -> None:
    agent = make_agent(make_tenant())
    with tenant_scope(tenant.pk):
        for agent_id in (agent.pk, uuid.uuid4()):
            with pytest.raises(AgentNotFound), transaction.atomic():
                execute(AgentDuplicateAction(agent_id=agent_id, actor="test"))


# --- Restore ----------------------------------------------------------------------------------------


def test_a_restored_agent_is_as_it_was(tenant: Tenant) -> None:
    agent = make_agent(tenant, slug="reception", **CONFIG)
    act(agent, AgentDeleteAction)
    restored = act(agent, AgentRestoreAction)
    assert (restored.slug, restored.version, restored.status) == ("reception", 1, "published")
    assert restored.config == AgentConfig(**CONFIG)
    # Once more changes nothing.
    assert act(agent, AgentRestoreAction).etag == restored.etag
    assert AuditEntry.unscoped.filter(object_id=str(agent.pk)).count() == 3


def test_a_slug_that_was_taken_meanwhile_gets_a_suffix(tenant: Tenant) -> None:
    agent = make_agent(tenant, slug="reception")
    act(agent, AgentDeleteAction)
    make_agent(tenant, slug="reception")
    assert act(agent, AgentRestoreAction).slug.startswith("reception-")


# --- The command ------------------------------------------------------------------------------------


def command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("agents", *arguments, stdout=out)
    return out.getvalue()


def test_the_command_moves_an_agent_by_files(tenant: Tenant, tmp_path: Path) -> None:
    agent = make_agent(tenant, slug="reception", **CONFIG)
    file = tmp_path / "reception.json"
    command("export", "reception", "--tenant", tenant.pk, "--output", str(file))
    by_id = command("export", str(agent.pk), "--tenant", tenant.pk)
    assert json.loads(file.read_text()) == json.loads(by_id) == exported(agent, tenant)
    other = make_tenant()
    told = command("import", str(file), "--tenant", other.pk)
    made = Agent.unscoped.get(tenant=other)
    assert told == f"{made.pk} reception\n"
    entry = AuditEntry.unscoped.get(tenant=other)
    assert (entry.actor, entry.source) == ("command:agents", "command")


def test_the_command_reads_standard_input(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = command("export", str(make_agent(tenant).pk), "--tenant", tenant.pk)
    stream = tmp_path / "stdin"
    stream.write_text(text)
    other = make_tenant()
    with stream.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        command("import", "--tenant", other.pk)
    assert Agent.unscoped.filter(tenant=other).count() == 1


def test_of_several_files_all_are_imported_or_none(committed_tenant: Tenant, tmp_path: Path) -> None:
    tenant = committed_tenant
    document = exported(make_agent(tenant, model="echo"), tenant)
    good, refused = tmp_path / "good.json", tmp_path / "refused.json"
    good.write_text(json.dumps(document))
    refused.write_text(json.dumps(document | {"config": CONFIG | {"provider": "never-registered"}}))
    other = make_tenant()
    with pytest.raises(CommandError, match=r"refused\.json.*config\.provider"):
        command("import", str(good), str(refused), "--tenant", other.pk)
    assert not Agent.unscoped.filter(tenant=other).exists()
    command("import", str(good), "--tenant", other.pk)
    assert Agent.unscoped.filter(tenant=other).count() == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": "nooble.agent"}', "\xff"])
def test_the_command_names_a_file_that_is_none_of_ours(tenant: Tenant, tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(CommandError, match=r"bad\.json"):
        command("import", str(file), "--tenant", tenant.pk)


def test_the_command_names_what_does_not_exist(tenant: Tenant, tmp_path: Path) -> None:
    for arguments in (
        ("export", "nobody", "--tenant", tenant.pk),
        ("export", str(uuid.uuid4()), "--tenant", tenant.pk),
        ("export", "nobody", "--tenant", "no-such-tenant"),
        ("import", str(tmp_path / "nowhere.json"), "--tenant", tenant.pk),
    ):
        with pytest.raises(CommandError):
            command(*arguments)
