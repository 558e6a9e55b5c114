"""Providers that tenants register: over HTTP, in the console, and in runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from agents.actions import AgentDeleteAction
from bench.fake_model import FakeModel, Schedule, start
from core import aio
from core.actions.bus import execute
from core.models import AuditEntry, ProviderCredential, Task, Tenant
from core.secrets import decrypt
from core.tenancy import tenant_scope
from execution.credentials import provider_maker
from execution.providers.base import ProviderNotConfigured
from tests.api import Api
from tests.conftest import forget_cached_rows
from tests.execution.test_handlers import ask
from tests.factories import make_agent, make_tenant

PROVIDERS = "/api/v1/providers"
KEY = "sk-very-secret-key-1234"
NOWHERE = "http://127.0.0.1:1/v1"


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[FakeModel, str]]:
    """A model server on the worker's loop, and its base URL."""
    fake = FakeModel(Schedule(first_token=0.0, interval=0.0, tokens=6))
    runner, base_url = aio.run(start(fake))
    yield fake, base_url
    aio.run(runner.cleanup())


@pytest.fixture
def base_url(model: tuple[FakeModel, str]) -> str:
    fake, address = model
    fake._books.clear()
    return address


@pytest.fixture
def api(committed_tenant: Tenant) -> Api:
    return Api(committed_tenant)


def keys_seen(model: tuple[FakeModel, str]) -> list[str | None]:
    """The Authorization header of every completion that the server was asked for."""
    return [asdict(entry)["authorization"] for entry in model[0]._books]


def register(api: Api, name: str = "ours", **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = api("POST", PROVIDERS, {"name": name, **fields}, expect=201)
    return made


def test_a_provider_is_registered_and_tested(api: Api, base_url: str) -> None:
    made = register(api, base_url=f"{base_url}/", api_key=KEY)
    assert (made["name"], made["kind"], made["base_url"], made["key"]) == (
        "ours",
        "openai-wire",
        base_url,
        "…1234",
    )
    check = made["check"]
    assert (check["ok"], check["error"]) == (True, None)
    assert check["models"] > 1
    assert api("GET", f"{PROVIDERS}/ours") == made
    assert api("GET", PROVIDERS) == {"items": [made], "next": None}


def test_a_provider_that_cannot_be_reached_is_registered_all_the_same(api: Api, base_url: str) -> None:
    made = register(api, base_url=NOWHERE)
    assert made["key"] is None
    assert (made["check"]["ok"], made["check"]["error"]["type"]) == (False, "ProviderUnavailable")
    found = api("PATCH", f"{PROVIDERS}/ours", {"base_url": base_url})
    assert found["check"]["ok"] is True
    again = api("PATCH", f"{PROVIDERS}/ours", {})
    assert again["check"]["checked_at"] > found["check"]["checked_at"]
    assert again["updated_at"] == found["updated_at"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "base_url"),
        ({"name": "openai"}, "api_key"),
        ({"name": "scripted", "base_url": NOWHERE}, "name"),
        ({"name": "No Slug", "base_url": NOWHERE}, "name"),
        ({"base_url": "ftp://example.com"}, "base_url"),
        ({"base_url": "example.com/v1"}, "base_url"),
        ({"base_url": "http://user:password@example.com/v1"}, "base_url"),
        ({"base_url": "http://example.com/v1?key=x"}, "base_url"),
        ({"base_url": "http://example.com/v1#x"}, "base_url"),
        ({"base_url": "http://2130706433/v1"}, "base_url"),
        ({"base_url": "http://example.com/" + "x" * 500}, "base_url"),
        ({"base_url": NOWHERE, "api_key": ""}, "api_key"),
        ({"base_url": NOWHERE, "api_key": "two\nlines"}, "api_key"),
        ({"base_url": NOWHERE, "api_key": "clé"}, "api_key"),
        ({"base_url": NOWHERE, "kind": "other"}, "kind"),
        ({"base_url": NOWHERE, "nonsense": 1}, "nonsense"),
        ({"base_url": NOWHERE, "encrypted_key": "x"}, "encrypted_key"),
    ],
)
def test_a_bad_field_is_named(api: Api, fields: dict[str, Any], named: str) -> None:
    assert named in api.refused("POST", PROVIDERS, {"name": "ours", **fields})
    assert not ProviderCredential.unscoped.exists()


def test_a_kept_key_never_goes_to_a_new_address(
    api: Api, model: tuple[FakeModel, str], base_url: str
) -> None:
    """Whoever may change providers must not be able to read keys with a server of their own."""
    before = register(api, base_url=NOWHERE, api_key=KEY)
    path = f"{PROVIDERS}/ours"
    assert "api_key" in api.refused("PATCH", path, {"base_url": base_url})
    assert api("GET", path) == before
    assert api("PATCH", path, {"base_url": base_url, "api_key": None})["key"] is None
    assert api("PATCH", path, {"api_key": "another-long-key"})["key"] == "…-key"
    own = register(api, "openai", api_key=KEY)
    assert (own["base_url"], own["key"]) == (None, "…1234")
    assert "api_key" in api.refused("PATCH", f"{PROVIDERS}/openai", {"base_url": base_url})
    assert "api_key" in api.refused("PATCH", f"{PROVIDERS}/openai", {"api_key": None})
    assert keys_seen(model) == []


def test_a_short_key_shows_nothing_of_itself(api: Api) -> None:
    assert register(api, base_url=NOWHERE, api_key="short")["key"] == "…"


def test_a_key_is_nowhere_to_be_read(
    api: Api, base_url: str, admin_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [json.dumps(register(api, base_url=base_url, api_key=KEY))]
    texts.append(json.dumps(api.refused("POST", PROVIDERS, {"name": "x", "api_key": KEY})))
    other = "sk-other-secret-key-5678"
    texts.append(json.dumps(api("PATCH", f"{PROVIDERS}/ours", {"api_key": other})))
    task = ask(make_agent(api.tenant, provider="ours", model="fake-401"), "Hello?")
    assert (task.status, task.error["type"]) == ("failed", "ProviderAuthenticationFailed")
    row = ProviderCredential.unscoped.get()
    for page in ("core_providercredential_change", "core_providercredential_changelist"):
        args = [row.pk] if page.endswith("change") else []
        texts.append(admin_client.get(reverse(f"admin:{page}", args=args)).content.decode())
    entries = AuditEntry.unscoped.filter(object_type="provider")
    assert [entry.after["api_key"] for entry in entries] == ["***", "***"]
    texts += [json.dumps([entry.before, entry.after]) for entry in entries]
    texts += [json.dumps([task.payload, task.result, task.error]) for task in Task.unscoped.all()]
    texts += [caplog.text, repr(row.__dict__)]
    assert "5678" in texts[2]
    for text in texts:
        assert KEY not in text
        assert other not in text
    assert decrypt(row.encrypted_key) == other


def test_runs_use_the_tenants_own_key_at_the_tenants_own_address(
    api: Api, model: tuple[FakeModel, str], base_url: str
) -> None:
    register(api, base_url=base_url, api_key=KEY)
    assert ask(make_agent(api.tenant, provider="ours", model="fake"), "Hello?").status == "completed"
    assert keys_seen(model) == [f"Bearer {KEY}"]
    # A change is in force at once where nothing is remembered, and within a second elsewhere.
    api("PATCH", f"{PROVIDERS}/ours", {"api_key": "another-long-key"})
    forget_cached_rows()
    ask(make_agent(api.tenant, provider="ours", model="fake"), "Hello?")
    assert keys_seen(model)[-1] == "Bearer another-long-key"


def test_an_own_key_takes_the_operators_place_and_the_two_never_mix(
    api: Api, model: tuple[FakeModel, str], base_url: str, settings: Any
) -> None:
    settings.PROVIDERS = settings.PROVIDERS | {"openai": (base_url, "the-operators"), "groq": (base_url, "g")}
    # An address without a key of its own gets none: the operator's is not for it.
    register(api, "openai", base_url=base_url)
    agent = make_agent(api.tenant, provider="openai", model="fake")
    assert ask(agent, "Hello?").status == "completed"
    assert keys_seen(model) == [None]
    other = make_agent(make_tenant(), provider="openai", model="fake")
    assert ask(other, "Hello?").status == "completed"
    assert keys_seen(model)[-1] == "Bearer the-operators"
    api("DELETE", f"{PROVIDERS}/openai", expect=204)
    forget_cached_rows()
    assert ask(agent, "Hello?").status == "completed"
    assert keys_seen(model)[-1] == "Bearer the-operators"


def test_a_tier_without_the_operators_keys_runs_on_its_own(
    transactional_db: None, model: tuple[FakeModel, str], base_url: str, settings: Any
) -> None:
    settings.PROVIDERS = settings.PROVIDERS | {"openai": (base_url, "the-operators")}
    api = Api(make_tenant(uses_environment_keys=False))
    agent = make_agent(api.tenant, provider="openai", model="fake")
    assert ask(agent, "Hello?").error["type"] == "ProviderNotConfigured"
    register(api, "openai", base_url=base_url, api_key=KEY)
    forget_cached_rows()
    assert ask(agent, "Hello?").status == "completed"
    assert keys_seen(model) == [f"Bearer {KEY}"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_a_private_address_is_refused_at_the_connect(
    api: Api, model: tuple[FakeModel, str], base_url: str, settings: Any, host: str
) -> None:
    settings.OUTBOUND_ALLOW = ()
    address = base_url.replace("127.0.0.1", host)
    made = register(api, base_url=address, api_key=KEY)
    assert made["check"]["error"]["type"] == "ProviderAddressRefused"
    task = ask(make_agent(api.tenant, provider="ours", model="fake"), "Hello?")
    assert (task.status, task.error["type"]) == ("failed", "ProviderAddressRefused")
    assert keys_seen(model) == []


def test_the_operators_own_address_may_be_private(
    api: Api, model: tuple[FakeModel, str], base_url: str, settings: Any
) -> None:
    settings.OUTBOUND_ALLOW = ()
    settings.PROVIDERS = settings.PROVIDERS | {"openai": (base_url, "the-operators")}
    assert ask(make_agent(api.tenant, provider="openai", model="fake"), "Hello?").status == "completed"


def test_a_redirect_is_not_followed(api: Api, model: tuple[FakeModel, str], base_url: str) -> None:
    register(api, base_url=base_url, api_key=KEY)
    task = ask(make_agent(api.tenant, provider="ours", model="fake-redirect"), "Hello?")
    assert (task.status, task.error["type"]) == ("failed", "ProviderProtocolError")


def test_a_provider_that_agents_use_is_not_forgotten(api: Api, base_url: str) -> None:
    register(api, base_url=base_url, api_key=KEY)
    agent = make_agent(api.tenant, slug="desk", fallback={"provider": "ours", "model": "m"})
    error = api("DELETE", f"{PROVIDERS}/ours", expect=409)["error"]
    assert (error["type"], error["details"]) == ("ProviderInUse", {"agents": ["desk"]})
    api("DELETE", f"/api/v1/agents/{agent.pk}", expect=204)
    api("DELETE", f"{PROVIDERS}/ours", expect=204)
    assert api("GET", f"{PROVIDERS}/ours", expect=404)["error"]["type"] == "ProviderNotFound"


def test_an_agent_whose_provider_is_gone_fails_by_name(api: Api, base_url: str) -> None:
    register(api, base_url=base_url, api_key=KEY)
    agent = make_agent(api.tenant, provider="ours", model="fake")
    ProviderCredential.unscoped.all().delete()
    forget_cached_rows()
    assert ask(agent, "Hello?").error["type"] == "ProviderNotConfigured"


def test_a_name_is_taken_once_in_a_tenant(api: Api) -> None:
    register(api, base_url=NOWHERE)
    again = {"name": "ours", "base_url": NOWHERE}
    assert api("POST", PROVIDERS, again, expect=409)["error"]["type"] == "ProviderExists"
    register(Api(make_tenant()), base_url=NOWHERE)


def test_another_tenants_provider_is_like_one_that_does_not_exist(api: Api) -> None:
    register(Api(make_tenant()), "theirs", base_url=NOWHERE)
    for name in ("theirs", "nobody", "No Slug"):
        for method, sent in (("GET", None), ("PATCH", {"api_key": KEY}), ("DELETE", None)):
            answer = api(method, f"{PROVIDERS}/{name.replace(' ', '%20')}", sent, expect=404)
            assert answer["error"]["type"] == "ProviderNotFound"
    assert api("GET", PROVIDERS)["items"] == []
    assert ProviderCredential.unscoped.get().encrypted_key == ""


def test_a_tier_may_allow_none_of_ones_own(transactional_db: None, base_url: str) -> None:
    api = Api(make_tenant())
    register(api, base_url=base_url, api_key=KEY)
    agent = make_agent(api.tenant, provider="ours", model="fake")
    tier = api.tenant.tier
    tier.own_providers = False
    tier.save()
    forget_cached_rows()
    error = api("POST", PROVIDERS, {"name": "more", "base_url": NOWHERE}, expect=403)["error"]
    assert error["message"] == "The tier Tier does not allow providers of one's own."
    api("PATCH", f"{PROVIDERS}/ours", {"api_key": KEY}, expect=403)
    # Who has one keeps it: nobody's agent falls silent.
    assert ask(agent, "Hello?").status == "completed"
    assert api("GET", f"/api/v1/agents/{agent.pk}")["validation"]["findings"][0]["code"] == (
        "provider_not_allowed"
    )


def test_a_key_that_nothing_opens_any_more_is_no_key(api: Api, base_url: str, settings: Any) -> None:
    register(api, base_url=base_url, api_key=KEY)
    settings.ENCRYPTION_KEYS = ["A" * 43 + "="]
    with pytest.raises(ProviderNotConfigured) as refused:
        provider_maker(api.tenant.pk, "ours")()
    assert KEY not in str(refused.value)
    found = api("PATCH", f"{PROVIDERS}/ours", {})
    assert found["check"]["error"]["type"] == "ProviderNotConfigured"


def test_what_a_tenant_has_registered_costs_no_query_while_it_is_remembered(
    tenant: Tenant, django_assert_num_queries: Any
) -> None:
    provider_maker(tenant.pk, "openai")
    with django_assert_num_queries(0):
        provider_maker(tenant.pk, "openai")


# --- The console ------------------------------------------------------------------------------------

ADD = reverse("admin:core_providercredential_add")


def test_the_console_registers_and_tests(
    admin_client: Client, committed_tenant: Tenant, base_url: str
) -> None:
    body = {"name": "ours", "tenant": committed_tenant.pk, "base_url": base_url, "api_key": KEY}
    assert admin_client.post(ADD, body).status_code == 302
    row = ProviderCredential.unscoped.get()
    assert decrypt(row.encrypted_key) == KEY
    assert (row.check_error, row.checked_at is not None) == ("", True)
    change = reverse("admin:core_providercredential_change", args=[row.pk])
    assert "…1234" in admin_client.get(change).content.decode()

    # Left empty, the key stays.
    assert admin_client.post(change, {"base_url": base_url, "api_key": ""}).status_code == 302
    row.refresh_from_db()
    assert decrypt(row.encrypted_key) == KEY
    page = admin_client.post(change, {"base_url": NOWHERE, "api_key": ""})
    assert list(page.context["adminform"].form.errors) == ["api_key"]
    page = admin_client.post(change, {"base_url": NOWHERE, "api_key": KEY}, follow=True)
    assert "ours was asked for its models" in page.content.decode()
    assert KEY not in page.content.decode()

    agent = make_agent(committed_tenant, slug="desk", provider="ours", model="fake")
    delete = reverse("admin:core_providercredential_delete", args=[row.pk])
    page = admin_client.post(delete, {"post": "yes"}, follow=True)
    assert "Agents use this provider. desk" in page.content.decode()
    with tenant_scope(committed_tenant.pk):
        execute(AgentDeleteAction(agent_id=agent.pk, actor="test"))
    assert admin_client.post(delete, {"post": "yes"}).status_code == 302
    assert not ProviderCredential.unscoped.exists()


def test_the_console_refuses_in_the_words_of_the_api(admin_client: Client, committed_tenant: Tenant) -> None:
    body = {"name": "ours", "tenant": committed_tenant.pk, "base_url": "", "api_key": KEY}
    page = admin_client.post(ADD, body)
    assert page.context["adminform"].form.errors == {
        "base_url": ["A provider of this name needs an address."]
    }
    assert KEY not in page.content.decode()
    page = admin_client.post(ADD, body | {"base_url": "http://user:pw@example.com"})
    assert list(page.context["adminform"].form.errors) == ["base_url"]
    tier = committed_tenant.tier
    tier.own_providers = False
    tier.save()
    page = admin_client.post(ADD, body | {"base_url": NOWHERE})
    [error] = page.context["adminform"].form.non_field_errors()
    assert error == "The tier Tier does not allow providers of one's own."
