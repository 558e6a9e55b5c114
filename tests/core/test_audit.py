"""The record of changes: in the change's transaction, with whoever asked, without secrets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client
from django.urls import reverse
from pydantic import BaseModel, SecretBytes, SecretStr
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory

from agents.actions import AgentCreateAction, AgentUpdateAction
from core.actions import registry
from core.actions.bus import enqueue, execute
from core.actions.keys import ApiKeyCreateAction, ApiKeyRevokeAction
from core.actions.registry import handles
from core.actions.worker import run_task
from core.api.views import KeyView
from core.audit import MASK, Origin, asked_by, current_origin, is_secret, record, with_actor
from core.errors import Conflict, ValidationFailed
from core.models import ApiKey, AuditEntry, Tenant
from core.models.audit import AuditSource
from core.tenancy import NoTenantScope, tenant_scope
from tests.core.actions.conftest import NoteAction, NoteResult
from tests.factories import make_agent, make_key, make_tenant

SECRET = "s3cr3t-of-somebody"


def entries(tenant: Tenant | None = None) -> list[AuditEntry]:
    return list(AuditEntry.unscoped.filter(tenant=tenant).order_by("pk"))


def write(tenant: Tenant, before: Any, after: Any) -> AuditEntry | None:
    return record("thing.change", "thing", 7, tenant_id=tenant.pk, before=before, after=after)


def test_only_what_differs_is_kept(tenant: Tenant) -> None:
    entry = write(tenant, {"a": 1, "b": {"c": 1, "d": 2}}, {"a": 1, "b": {"c": 3, "d": 2}})
    assert entry is not None
    assert (entry.before, entry.after) == ({"b.c": 1}, {"b.c": 3})
    assert (entry.verb, entry.object_type, entry.object_id) == ("thing.change", "thing", "7")
    assert (entry.actor, entry.source, entry.ip) == ("system", "command", None)


def test_of_something_new_there_is_no_before_and_of_something_gone_no_after(tenant: Tenant) -> None:
    new, gone = write(tenant, {}, {"a": 1, "b": None}), write(tenant, {"a": 1}, {})
    assert new is not None
    assert gone is not None
    assert (new.before, new.after) == ({}, {"a": 1})
    assert (gone.before, gone.after) == ({"a": 1}, {})


def test_where_nothing_differs_nothing_is_written(tenant: Tenant) -> None:
    assert write(tenant, {"a": 1}, {"a": 1}) is None
    assert entries(tenant) == []


def test_an_entry_belongs_into_a_transaction(committed_tenant: Tenant) -> None:
    with pytest.raises(RuntimeError, match="transaction"):
        write(committed_tenant, {}, {"a": 1})
    assert entries(committed_tenant) == []


def test_a_change_that_fails_leaves_no_entry(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    before = entries(committed_tenant)
    update = AgentUpdateAction(agent_id=agent.pk, name="Grace", config={"max_turns": 3}, actor="test")
    with tenant_scope(committed_tenant.pk):
        with pytest.raises(Conflict), transaction.atomic():
            execute(update)
            assert len(entries(committed_tenant)) == len(before) + 1
            raise Conflict()
        with pytest.raises(ValidationFailed):
            execute(update.model_copy(update={"config": {"max_turns": 0}}))
    assert entries(committed_tenant) == before


def test_an_entry_never_changes(tenant: Tenant) -> None:
    entry = write(tenant, {}, {"a": 1})
    assert entry is not None
    with pytest.raises(TypeError, match="never changes"):
        entry.save()


def test_entries_are_read_in_their_tenant_only(tenant: Tenant) -> None:
    write(tenant, {}, {"a": 1})
    with pytest.raises(NoTenantScope):
        AuditEntry.objects.all()
    with tenant_scope(make_tenant().pk):
        assert not AuditEntry.objects.exists()
    with tenant_scope(tenant.pk):
        assert AuditEntry.objects.count() == 1


# --- Secrets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "secret",
        "client_secret",
        "password",
        "api_key",
        "apikey",
        "key",
        "encrypted_key",
        "service_token",
        "token",
        "Authorization",
        "credentials",
        "digest",
        "X-Api-Key",
    ],
)
def test_secrets_are_known_by_their_names(tenant: Tenant, name: str) -> None:
    assert is_secret(name)
    for state in ({name: SECRET}, {"inner": {name: SECRET}}, {name: [SECRET]}, {name: {"of": SECRET}}):
        for before, after in (({}, state), (state, {}), (state, {**state, "other": 1})):
            entry = write(tenant, before, after)
            assert entry is not None
            assert SECRET not in str([entry.before, entry.after])


@pytest.mark.parametrize("name", ["max_output_tokens", "prompt_tokens", "keyboard", "tokenizer", "monkey"])
def test_what_only_sounds_like_one_is_shown(tenant: Tenant, name: str) -> None:
    entry = write(tenant, {name: "one"}, {name: "two"})
    assert entry is not None
    assert (entry.before, entry.after) == ({name: "one"}, {name: "two"})


def test_numbers_and_switches_are_no_secrets(tenant: Tenant) -> None:
    entry = write(tenant, {"uses_environment_keys": True}, {"uses_environment_keys": False})
    assert entry is not None
    assert (entry.before, entry.after) == ({"uses_environment_keys": True}, {"uses_environment_keys": False})


class Shape(BaseModel):
    plain: str
    hidden: SecretStr


def test_secrets_are_known_by_their_types(tenant: Tenant) -> None:
    values = (SecretStr(SECRET), SecretBytes(SECRET.encode()), SECRET.encode(), memoryview(SECRET.encode()))
    for value in values:
        entry = write(tenant, {}, {"harmless": value, "list": [value], "inner": {"x": value}})
        assert entry is not None
        assert entry.after == {"harmless": MASK, "list": [MASK], "inner": {"x": MASK}}
    entry = write(tenant, {}, {"shape": Shape(plain="seen", hidden=SecretStr(SECRET))})
    assert entry is not None
    assert entry.after == {"shape": {"plain": "seen", "hidden": MASK}}


def test_that_a_secret_has_changed_is_told(tenant: Tenant) -> None:
    entry = write(
        tenant, {"api_key": "old", "note": SecretStr("a")}, {"api_key": "new", "note": SecretStr("b")}
    )
    assert entry is not None
    assert (entry.before, entry.after) == ({"api_key": MASK, "note": MASK}, {"api_key": MASK, "note": MASK})
    entry = write(tenant, {"api_key": ""}, {"api_key": "new"})
    assert entry is not None
    assert (entry.before, entry.after) == ({"api_key": ""}, {"api_key": MASK})


def test_the_keys_that_are_made_are_nowhere_in_the_record(tenant: Tenant) -> None:
    with tenant_scope(tenant.pk):
        made = execute(ApiKeyCreateAction(name="Their shop", scopes=("agents:read",)))
        execute(ApiKeyRevokeAction(row_id=made.row_id))
        execute(ApiKeyRevokeAction(row_id=made.row_id))
    created, revoked = entries(tenant)
    row = ApiKey.unscoped.get(pk=made.row_id)
    assert (created.verb, created.object_type, created.object_id) == (
        "api_key.create",
        "api_key",
        str(row.pk),
    )
    assert created.after == {"name": "Their shop", "prefix": row.prefix, "scopes": ["agents:read"]}
    assert (revoked.verb, revoked.after) == ("api_key.revoke", {"revoked": True})
    text = str([[entry.before, entry.after] for entry in (created, revoked)])
    assert made.key.rpartition("_")[2] not in text
    assert row.digest not in text


# --- Who asked, and from where ------------------------------------------------------------------------


def test_what_has_come_through_no_door_was_started_by_hand() -> None:
    assert current_origin().source == AuditSource.COMMAND


def test_an_origin_ends_with_its_work() -> None:
    with asked_by(Origin(AuditSource.QUEUE, request_id="r")):
        with asked_by(with_actor("key:x")):
            assert (current_origin().request_id, current_origin().actor()) == ("r", "key:x")
        assert current_origin().actor() == ""
    assert current_origin().source == AuditSource.COMMAND


def test_the_api_tells_the_key_the_request_and_the_address(client: Client, tenant: Tenant) -> None:
    key, text = make_key(tenant)
    config = {"provider": "scripted", "model": "echo"}
    response = client.post(
        "/api/v1/agents",
        {"name": "Ada", "type": "assistant", "config": config},
        content_type="application/json",
        headers={"Authorization": f"Bearer {text}", "X-Request-ID": "req-1"},
        REMOTE_ADDR="203.0.113.7",
    )
    assert response.status_code == 201
    [entry] = entries(tenant)
    assert (entry.verb, entry.object_id) == ("agent.create", response.json()["agent_id"])
    assert (entry.actor, entry.source) == (f"key:{key.prefix}", "api")
    assert (entry.request_id, entry.ip) == ("req-1", "203.0.113.7")


def test_a_keys_view_tells_the_key_to_actions_that_do_not(tenant: Tenant) -> None:
    class Probe(KeyView):
        area = "agents"

        def get(self, request: Request) -> Response:
            return Response({"actor": current_origin().actor()})

    key, text = make_key(tenant)
    request = APIRequestFactory().get("/", HTTP_AUTHORIZATION=f"Bearer {text}")
    assert Probe.as_view()(request).data == {"actor": f"key:{key.prefix}"}
    assert current_origin().actor() == ""


@pytest.mark.parametrize(
    ("address", "kept"),
    [("fe80::1%eth0", "fe80::1"), ("", None), ("unix:", None), ("2001:db8::1", "2001:db8::1")],
)
def test_whatever_the_address_is_the_change_is_made(
    client: Client, tenant: Tenant, address: str, kept: str | None
) -> None:
    agent = make_agent(tenant)
    _, text = make_key(tenant)
    client.delete(
        f"/api/v1/agents/{agent.pk}", headers={"Authorization": f"Bearer {text}"}, REMOTE_ADDR=address
    )
    entry = entries(tenant)[-1]
    assert (entry.verb, entry.ip) == ("agent.delete", kept)


def test_the_console_tells_the_person(admin_client: Client, tenant: Tenant) -> None:
    body = {"tenant": tenant.pk, "name": "Their shop", "scopes": ["agents:read"]}
    admin_client.post(reverse("admin:core_apikey_add"), body)
    [entry] = entries(tenant)
    assert (entry.actor, entry.source, entry.ip) == ("user:admin", "admin", "127.0.0.1")
    assert entry.request_id


def test_the_queue_tells_its_task(committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_handlers", dict(registry._handlers))

    @handles(NoteAction)
    def note(action: NoteAction) -> NoteResult:
        record(action.verb, "note", 1, tenant_id=committed_tenant.pk, before={}, after={"text": action.text})
        return NoteResult(text=action.text)

    with tenant_scope(committed_tenant.pk):
        task = enqueue(NoteAction(text="hi"))
    run_task(str(task.pk), committed_tenant.pk)
    [entry] = entries(committed_tenant)
    assert (entry.source, entry.request_id, entry.actor) == ("queue", str(task.pk), "system")


def test_threads_that_serve_one_after_another_do_not_mix_callers(committed_tenant: Tenant) -> None:
    """Each request of a pool's thread brings its own origin and takes it away again."""
    _, text = make_key(committed_tenant)
    agent = make_agent(committed_tenant)
    User.objects.create_superuser("root", password=None)

    def call(number: int) -> None:
        try:
            client = Client()
            client.patch(
                f"/api/v1/agents/{agent.pk}",
                {"name": f"Name {number}"},
                content_type="application/json",
                headers={"Authorization": f"Bearer {text}", "X-Request-ID": f"req-{number}"},
            )
            assert current_origin().source == AuditSource.COMMAND
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(call, range(12)))
    told = {entry.after["name"]: entry.request_id for entry in entries(committed_tenant)[1:]}
    assert told == {f"Name {number}": f"req-{number}" for number in range(12)}


def test_an_action_tells_who_asked_where_the_door_does_not(tenant: Tenant) -> None:
    config = {"provider": "scripted", "model": "echo"}
    with tenant_scope(tenant.pk):
        execute(AgentCreateAction(name="Ada", type="assistant", config=config, actor="seed"))
    assert entries(tenant)[0].actor == "seed"
