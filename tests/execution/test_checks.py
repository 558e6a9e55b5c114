"""Checks of agents by a worker: providers asked, models known, placeholders filled."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from django.db import connection

from agents.actions import AgentUpdateAction
from agents.models import Agent
from bench.fake_model import FakeModel, Schedule, start
from core import aio
from core.actions.bus import execute
from core.actions.worker import run_task
from core.models import Notice, ProviderCredential, Task, Tenant, Tier
from core.tenancy import tenant_scope
from execution.handlers import checks
from execution.providers import openai_wire
from tests.api import Api
from tests.conftest import forget_cached_rows
from tests.execution.test_handlers import ask
from tests.factories import make_agent, make_tenant

AGENTS = "/api/v1/agents"


@pytest.fixture(scope="module")
def fake_model() -> Iterator[str]:
    model = FakeModel(Schedule(first_token=0.0, interval=0.0, tokens=6))
    runner, base_url = aio.run(start(model))
    yield base_url
    aio.run(runner.cleanup())


class Lists:
    """A server whose list of models is what `answer` gives."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.base_url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        answer: web.StreamResponse = await self.answer(request)
        return answer


@pytest.fixture
def lists() -> Iterator[Lists]:
    server = Lists()

    async def begin() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v1/models", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.base_url = f"http://{host}:{port}/v1"
        return runner

    runner = aio.run(begin())
    yield server
    aio.run(runner.cleanup())


@pytest.fixture
def api(committed_tenant: Tenant) -> Api:
    return Api(committed_tenant)


def check(api: Api, agent: Agent) -> dict[str, Any]:
    """Ask for a check over HTTP, let a worker do it, and read the agent."""
    asked = api("POST", f"{AGENTS}/{agent.pk}/validate", {}, expect=202)
    assert asked["success"] is True
    result = asked["result"]
    assert (result["agent_id"], result["queue"]) == (str(agent.pk), f"agent:{api.tenant.pk}:validate:low")
    assert result["status"] in ("pending", "queued")
    run_task(result["task_id"], api.tenant.pk)
    task = Task.unscoped.get(pk=result["task_id"])
    assert (task.status, task.error, task.agent_id) == ("completed", None, agent.pk)
    validation: dict[str, Any] = api("GET", f"{AGENTS}/{agent.pk}")["validation"]
    return validation


def codes(validation: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {finding["field"]: (finding["level"], finding["code"]) for finding in validation["findings"]}


def own(tenant: Tenant, base_url: str, key: str | None = None) -> None:
    row = ProviderCredential(tenant=tenant, name="ours", base_url=base_url)
    row.set_key(key)
    row.save()


def test_an_agent_that_will_answer_is_valid(api: Api, fake_model: str, settings: Any) -> None:
    settings.PROVIDERS = settings.PROVIDERS | {"openai": (fake_model, "a-key")}
    agent = make_agent(
        api.tenant,
        provider="openai",
        model="fake",
        instructions="You are {{agent_name}}.",
        fallback={"provider": "scripted", "model": "any"},
    )
    validation = check(api, agent)
    assert (validation["status"], validation["version"], validation["findings"]) == ("valid", 1, [])
    assert validation["checked_at"]
    assert api("GET", AGENTS)["items"][0]["validation"] == validation


def test_an_unknown_model_is_a_warning_and_no_refusal(api: Api, fake_model: str) -> None:
    own(api.tenant, fake_model)
    fallback = {"provider": "ours", "model": "other"}
    validation = check(api, make_agent(api.tenant, provider="ours", model="nobody", fallback=fallback))
    assert validation["status"] == "warnings"
    assert [
        (finding["field"], finding["level"], finding["code"], finding["message"])
        for finding in validation["findings"]
    ] == [
        ("config.model", "warning", "model_unknown", "The provider ours does not list the model nobody."),
        (
            "config.fallback.model",
            "warning",
            "model_unknown",
            "The provider ours does not list the model other.",
        ),
    ]


def test_what_will_not_answer_is_invalid(api: Api) -> None:
    fallback = {"provider": "openai", "model": "m"}
    agent = make_agent(api.tenant, provider="groq", model="m", fallback=fallback, instructions="{{nobody}}")
    validation = check(api, agent)
    assert validation["status"] == "invalid"
    assert codes(validation) == {
        "config.provider": ("error", "provider_not_configured"),
        "config.fallback.provider": ("error", "provider_not_configured"),
        "config.instructions": ("warning", "variable_of_sessions"),
    }
    [alias] = Notice.unscoped.filter(event="validation_complete")
    assert (alias.body["alias_of"], alias.body["data"]["valid"]) == ("agent_validated", False)
    spanish = api("GET", f"{AGENTS}/{agent.pk}", language="es")["validation"]["findings"]
    assert all(
        found["message"] != other["message"]
        for found, other in zip(spanish, validation["findings"], strict=True)
    )


@pytest.mark.parametrize(
    ("status", "level", "code"),
    [
        (401, "error", "provider_refused"),
        (403, "error", "provider_refused"),
        (429, "warning", "provider_unreachable"),
        (500, "warning", "provider_unreachable"),
        (302, "warning", "provider_unreachable"),
        (404, "", ""),
        (405, "", ""),
    ],
)
def test_what_the_provider_says(api: Api, lists: Lists, status: int, level: str, code: str) -> None:
    own(api.tenant, lists.base_url, "a-secret-key")
    seen = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.path, request.headers.get("Authorization")))
        return web.Response(status=status, text="a-secret-key", headers={"Location": "/v1/models"})

    lists.answer = answer
    validation = check(api, make_agent(api.tenant, provider="ours", model="m"))
    assert codes(validation) == ({"config.provider": (level, code)} if code else {})
    assert seen == [("/v1/models", "Bearer a-secret-key")]
    assert "a-secret-key" not in str(validation)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"data": 5}', '{"data": [5]}', "<html>", '{"data": [{}]}', "x" * 5_000]
)
def test_an_answer_that_is_no_list(
    api: Api, lists: Lists, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(api.tenant, lists.base_url)
    monkeypatch.setattr(openai_wire, "_MAX_LIST", 4_096)

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=text)

    lists.answer = answer
    validation = check(api, make_agent(api.tenant, provider="ours", model="m"))
    assert codes(validation) == {"config.provider": ("warning", "provider_unreachable")}


def test_a_provider_that_says_nothing_is_not_waited_for(
    api: Api, lists: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(api.tenant, lists.base_url)
    monkeypatch.setattr(openai_wire, "_LIST_WAIT", 0.2)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    lists.answer = answer
    began = time.monotonic()
    validation = check(api, make_agent(api.tenant, provider="ours", model="m"))
    assert time.monotonic() - began < 5
    assert codes(validation) == {"config.provider": ("warning", "provider_unreachable")}


def test_ollamas_latest_needs_no_tag(api: Api, lists: Lists) -> None:
    own(api.tenant, lists.base_url)

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "llama3:latest"}]})

    lists.answer = answer
    assert check(api, make_agent(api.tenant, provider="ours", model="llama3"))["status"] == "valid"


def test_a_private_address_is_not_asked(api: Api, lists: Lists, settings: Any) -> None:
    own(api.tenant, lists.base_url)
    settings.OUTBOUND_ALLOW = ()
    validation = check(api, make_agent(api.tenant, provider="ours", model="m"))
    assert codes(validation) == {"config.provider": ("error", "provider_address_refused")}


def test_a_provider_that_is_gone_is_unknown(api: Api) -> None:
    own(api.tenant, "http://127.0.0.1:1/v1")
    agent = make_agent(api.tenant, provider="ours", model="m")
    ProviderCredential.unscoped.all().delete()
    forget_cached_rows()
    assert codes(check(api, agent)) == {"config.provider": ("error", "provider_unknown")}


def test_what_the_tier_says_is_part_of_it(transactional_db: None) -> None:
    api = Api(make_tenant())
    agent = make_agent(api.tenant, timeout_seconds=1_000)
    tier = api.tenant.tier
    tier.allowed_models = ["other"]
    tier.save()
    validation = check(api, agent)
    assert codes(validation) == {
        "config.model": ("warning", "model_not_allowed"),
        "config.timeout_seconds": ("warning", "above_platform"),
    }
    # It follows the tier, not the check.
    tier.allowed_models = []
    tier.save()
    assert codes(api("GET", f"{AGENTS}/{agent.pk}")["validation"]).keys() == {"config.timeout_seconds"}


def test_no_connection_is_held_while_a_provider_is_asked(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    asked = checks._lists

    async def spy(makers: Any) -> Any:
        return await asked(makers)

    def look(makers: Any) -> Any:
        held.append(connection.connection)
        return spy(makers)

    monkeypatch.setattr(checks, "_lists", look)
    check(api, make_agent(api.tenant))
    assert held == [None]


def test_a_version_that_came_meanwhile_is_not_judged(api: Api, lists: Lists) -> None:
    own(api.tenant, lists.base_url)
    agent = make_agent(api.tenant, provider="ours", model="m")

    def change() -> None:
        try:
            with tenant_scope(api.tenant.pk):
                execute(AgentUpdateAction(agent_id=agent.pk, config={"temperature": 1}, actor="test"))
        finally:
            connection.close()

    async def answer(request: web.Request) -> web.Response:
        await asyncio.to_thread(change)
        return web.json_response({"data": []})

    lists.answer = answer
    assert check(api, agent) is None
    agent.refresh_from_db()
    assert (agent.version.number, agent.validation) == (2, None)


def test_only_an_agent_of_ones_own_is_checked(api: Api) -> None:
    foreign = make_agent(make_tenant())
    for agent_id in (foreign.pk, uuid.uuid4(), "x"):
        answer = api("POST", f"{AGENTS}/{agent_id}/validate", {}, expect=404)
        assert (answer["success"], answer["error"]["type"]) == (False, "AgentNotFound")
    assert not Task.unscoped.filter(action="agent.validate").exists()
    agent = make_agent(api.tenant)
    assert "nonsense" in api.refused("POST", f"{AGENTS}/{agent.pk}/validate", {"nonsense": 1})
    reader = Api(api.tenant, ("agents:read",))
    reader("POST", f"{AGENTS}/{agent.pk}/validate", None, expect=403)
    api("POST", f"{AGENTS}/{agent.pk}/validate", None, expect=202)


def test_a_run_keeps_the_tiers_bounds(transactional_db: None) -> None:
    """From the next run on, whatever the version says."""
    short = make_tenant(max_output_tokens=2)
    task = ask(make_agent(short), "one two three")
    assert (task.result["text"], task.result["finish_reason"]) == ("one two", "length")
    hasty = make_agent(make_tenant(), model="long", timeout_seconds=100)
    Tier.objects.filter(pk=hasty.tenant.tier_id).update(max_run_seconds=0.1)
    forget_cached_rows()
    assert ask(hasty, "Hello?").error["type"] == "DeadlineExceeded"
