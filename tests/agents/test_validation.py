"""What a tier allows: one rule for every door, and what becomes of what is there when it shrinks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from agents.actions import AgentCreateAction, AgentDeleteAction, AgentPublishAction, AgentUpdateAction
from agents.config import AgentConfig
from agents.errors import TooManyAgents
from agents.models import Agent
from agents.selectors import agent_get, agent_list, agent_resource
from agents.validation import AgentRecordValidationAction, Problem, bounded, text_problems, tier_validation
from agents.variables import PROMPT_VARIABLES
from core.actions.bus import execute
from core.errors import ValidationFailed
from core.models import AuditEntry, Notice, ProviderCredential, Tenant, Tier
from core.selectors import tenant_limits
from core.tenancy import tenant_scope
from core.tiers import misfits
from tests.api import Api
from tests.factories import make_agent, make_tenant

AGENTS = "/api/v1/agents"
CONFIG = {"provider": "scripted", "model": "echo"}


def body(**config: Any) -> dict[str, Any]:
    return {"name": "Ada", "type": "assistant", "config": {**CONFIG, **config}}


def shrink(tenant: Tenant, **fields: Any) -> None:
    """The tenant's tier, by the back door: what tests want is what it does to those who are there."""
    Tier.objects.filter(pk=tenant.tier_id).update(**fields)


@pytest.mark.parametrize(
    ("tier", "config", "field", "message"),
    [
        (
            {"allowed_models": ["echo"]},
            {"model": "long"},
            "config.model",
            "The tier Tier does not allow this model.",
        ),
        (
            {"allowed_models": ["echo"]},
            {"fallback": {"provider": "openai", "model": "long"}},
            "config.fallback.model",
            "The tier Tier does not allow this model.",
        ),
        (
            {"max_run_seconds": 30},
            {"timeout_seconds": 30.5},
            "config.timeout_seconds",
            "The tier Tier allows runs of 30 seconds at most.",
        ),
        (
            {"max_output_tokens": 100},
            {"max_output_tokens": 101},
            "config.max_output_tokens",
            "The tier Tier allows answers of 100 tokens at most.",
        ),
        (
            {"own_providers": False},
            {"provider": "ours"},
            "config.provider",
            "The tier Tier does not allow providers of one's own.",
        ),
        ({}, {"provider": "nobody"}, "config.provider", "No provider is called nobody."),
        (
            {},
            {"fallback": {"provider": "nobody", "model": "m"}},
            "config.fallback.provider",
            "No provider is called nobody.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_the_same_words_everywhere(
    db: None, tier: dict[str, Any], config: dict[str, Any], field: str, message: str
) -> None:
    tenant = make_tenant(**tier)
    api = Api(tenant)
    ProviderCredential.unscoped.create(tenant=tenant, name="ours", base_url="https://example.com/v1")
    assert api.refused("POST", AGENTS, body(**config)) == {field: message}
    agent = api("POST", AGENTS, body(), expect=201)
    path = f"{AGENTS}/{agent['agent_id']}"
    assert api.refused("PATCH", path, {"name": "Eve", "config": config}) == {field: message}
    document = api("GET", f"{path}/export")
    document["config"] |= config
    assert api.refused("POST", f"{AGENTS}/import", document) == {field: message}
    assert api("GET", path) == agent


def test_what_fits_exactly_is_taken(db: None) -> None:
    api = Api(make_tenant(max_run_seconds=30, max_output_tokens=100, allowed_models=["echo"], max_agents=1))
    api("POST", AGENTS, body(timeout_seconds=30, max_output_tokens=100), expect=201)


def test_another_tenants_provider_is_nobodys(tenant: Tenant) -> None:
    ProviderCredential.unscoped.create(tenant=make_tenant(), name="ours", base_url="https://example.com/v1")
    details = Api(tenant).refused("POST", AGENTS, body(provider="ours"))
    assert details == {"config.provider": "No provider is called ours."}


def test_an_agent_that_fits_no_longer_goes_on_and_says_so(tenant: Tenant) -> None:
    api = Api(tenant)
    agent = api("POST", AGENTS, body(), expect=201)
    assert agent["validation"] is None
    path = f"{AGENTS}/{agent['agent_id']}"
    shrink(tenant, allowed_models=["other"])
    finding = {
        "field": "config.model",
        "level": "warning",
        "code": "model_not_allowed",
        "message": "The tier Tier does not allow this model.",
    }
    expected = {"status": "warnings", "checked_at": None, "version": 1, "findings": [finding]}
    assert api("GET", path)["validation"] == expected
    assert api("GET", AGENTS)["items"][0]["validation"] == expected
    spanish = api("GET", path, language="es")["validation"]["findings"][0]
    assert spanish["code"] == "model_not_allowed"
    assert spanish["message"] != finding["message"]

    # All that is no new version goes on.
    renamed = api("PATCH", path, {"name": "Eve", "config": CONFIG})
    assert (renamed["name"], renamed["version"], renamed["published_version"]) == ("Eve", 1, 1)
    assert api.refused("PATCH", path, {"config": {"temperature": 1}}).keys() == {"config.model"}
    fitting = api("PATCH", path, {"config": {"model": "other"}})
    assert (fitting["version"], fitting["validation"]) == (2, None)
    assert api.refused("POST", f"{path}/rollback", {"version": 1}).keys() == {"config.model"}


def test_what_does_not_fit_is_not_published_later(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    draft = make_agent(tenant, draft=True)
    with tenant_scope(tenant.pk):
        execute(AgentUpdateAction(agent_id=agent.pk, config={"model": "long"}, publish=False, actor="test"))
        shrink(tenant, allowed_models=["echo"])
        with pytest.raises(ValidationFailed), transaction.atomic():
            execute(AgentPublishAction(agent_id=agent.pk, actor="test"))
        shrink(tenant, allowed_models=["long"])
        with pytest.raises(ValidationFailed), transaction.atomic():
            execute(AgentUpdateAction(agent_id=draft.pk, draft=False, actor="test"))
        # The version that answers is not the newest one: it is warned about all the same.
        validation = agent_resource(agent_get(agent.pk)).validation
    assert validation is not None
    assert [finding.code for finding in validation.findings] == ["model_not_allowed"]


def test_a_tenant_has_as_many_agents_as_its_tier_allows(db: None) -> None:
    tenant = make_tenant(max_agents=2)
    api = Api(tenant)
    first = api("POST", AGENTS, body(), expect=201)
    api("POST", AGENTS, body(), expect=201)
    error = api("POST", AGENTS, body(), expect=409)["error"]
    assert (error["type"], error["details"]) == ("TooManyAgents", {"limit": 2})
    assert error["message"] == "The tier Tier allows 2 agents."
    path = f"{AGENTS}/{first['agent_id']}"
    assert api("POST", f"{path}/duplicate", {}, expect=409)["error"]["type"] == "TooManyAgents"
    document = api("GET", f"{path}/export")
    assert api("POST", f"{AGENTS}/import", document, expect=409)["error"]["type"] == "TooManyAgents"
    api("DELETE", path, expect=204)
    api("POST", AGENTS, body(), expect=201)
    assert api("POST", f"{path}/restore", {}, expect=409)["error"]["type"] == "TooManyAgents"
    make_agent(make_tenant())


def test_agents_made_at_once_are_not_more_than_the_tier_allows(transactional_db: None) -> None:
    tenant = make_tenant(max_agents=3)
    rivals = 6
    barrier = Barrier(rivals)

    def make(_: int) -> bool:
        try:
            barrier.wait(timeout=30)
            with tenant_scope(tenant.pk):
                execute(AgentCreateAction(**body(), actor="test"))
            return True
        except TooManyAgents:
            return False
        finally:
            connection.close()

    with ThreadPoolExecutor(rivals) as threads:
        made = list(threads.map(make, range(rivals)))
    assert sum(made) == Agent.unscoped.filter(tenant=tenant).count() == 3


def test_misfits_are_named_before_a_tier_shrinks(tenant: Tenant) -> None:
    other = make_tenant()
    make_agent(tenant, timeout_seconds=60)
    make_agent(other, timeout_seconds=60)
    gone = make_agent(tenant, timeout_seconds=60)
    with tenant_scope(tenant.pk):
        execute(AgentDeleteAction(agent_id=gone.pk, actor="test"))
        held = make_agent(tenant, model="long")
        execute(AgentUpdateAction(agent_id=held.pk, config={"model": "echo"}, publish=False, actor="test"))
    wanted = Tier(slug="w", name="Wanted", allowed_models=["echo"], max_run_seconds=30, max_agents=1)
    assert [str(found) for found in misfits(wanted, Tenant.objects.filter(pk=tenant.pk))] == [
        f"{tenant.pk}: 2 agents: The tier Wanted allows 1 agents.",
        f"{tenant.pk}: Test agent: The tier Wanted allows runs of 30 seconds at most.",
        f"{tenant.pk}: Test agent: The tier Wanted does not allow this model.",
    ]


def test_a_tiers_bounds_of_a_run_hold_for_configurations_that_name_none(db: None) -> None:
    limits = tenant_limits(make_tenant(max_run_seconds=30, max_output_tokens=100).pk)
    unlimited = tenant_limits(make_tenant().pk)
    own = AgentConfig(**CONFIG, timeout_seconds=10, max_output_tokens=1_000)
    for config, bounds, expected in (
        (AgentConfig(**CONFIG), limits, (30, 100)),
        (own, limits, (10, 100)),
        (own, unlimited, (10, 1_000)),
        (AgentConfig(**CONFIG), unlimited, (None, None)),
    ):
        found = bounded(config, bounds)
        assert (found.timeout_seconds, found.max_output_tokens) == expected


def test_what_the_configuration_itself_shows() -> None:
    config = AgentConfig(
        **CONFIG,
        instructions="{{agent_name}} {{ date }} {{nobody}} {{Nobody}} {not}",
        greeting="{{agent_name}}",
        timeout_seconds=400,
        fallback=CONFIG,
    )
    found = {(problem.field, problem.code): problem.message for problem in text_problems(config, 300)}
    assert found == {
        (
            "config.instructions",
            "variable_of_sessions",
        ): "Only a session with a context variable of this name replaces {{nobody}}: "
        "elsewhere the model will read it as it is.",
        ("config.greeting", "variable_unknown"): "Nothing replaces {{agent_name}}: "
        "the model will read it as it is.",
        ("config.timeout_seconds", "above_platform"): "The platform ends every run after 300 seconds.",
        ("config.fallback", "fallback_is_the_same"): "The fallback is the model itself: it helps nobody.",
    }
    fine = AgentConfig(**CONFIG, instructions=" ".join(f"{{{{{name}}}}}" for name in PROMPT_VARIABLES))
    assert not list(text_problems(fine, 300))


def test_a_check_is_kept_with_the_version_it_looked_at(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    before = Agent.unscoped.get(pk=agent.pk)
    Notice.unscoped.all().delete()
    audited = AuditEntry.unscoped.count()
    problem = Problem(
        field="config.provider", code="provider_refused", level="error", values={"provider": "x"}
    )
    with tenant_scope(tenant.pk):
        execute(AgentRecordValidationAction(agent_id=agent.pk, version=1, problems=(problem,)))
        resource = agent_resource(agent_get(agent.pk))
    assert resource.validation is not None
    assert (resource.validation.status, resource.validation.version) == ("invalid", 1)
    assert resource.validation.checked_at is not None
    # No change of the agent: it has no entry, and whoever edits it meanwhile is not refused.
    assert (resource.updated_at, resource.etag) == (before.updated_at, before.tag)
    assert AuditEntry.unscoped.count() == audited
    notices = {notice.event: notice.body["data"] for notice in Notice.unscoped.filter(tenant=tenant)}
    assert notices.keys() == {"agent_validated", "validation_complete"}
    for data in notices.values():
        assert (data["valid"], data["warnings"], len(data["errors"])) == (False, [], 1)

    with tenant_scope(tenant.pk):
        execute(AgentUpdateAction(agent_id=agent.pk, config={"model": "long"}, actor="test"))
        assert agent_resource(agent_get(agent.pk)).validation is None
        # A check that ends after the change says nothing about it.
        execute(AgentRecordValidationAction(agent_id=agent.pk, version=1, problems=(problem,)))
        assert agent_resource(agent_get(agent.pk)).validation is None
        execute(AgentRecordValidationAction(agent_id=agent.pk, version=2, problems=()))
        validation = agent_resource(agent_get(agent.pk)).validation
    assert validation is not None
    assert (validation.status, validation.version, validation.findings) == ("valid", 2, ())


def test_what_is_known_of_a_page_of_agents_costs_one_query(tenant: Tenant) -> None:
    for _ in range(3):
        make_agent(tenant)
    shrink(tenant, allowed_models=["other"])
    with tenant_scope(tenant.pk), CaptureQueriesContext(connection) as queries:
        found = [agent_resource(agent).validation for agent in agent_list(None, 10)]
    assert len(queries) == 1
    assert all(found)


def test_the_rule_needs_no_database() -> None:
    tier = Tier(slug="t", name="T", allowed_models=["other"])
    assert tier_validation(AgentConfig(**CONFIG), tier).reasons == {
        "config.model": "The tier T does not allow this model."
    }
