"""Named reads of agents."""

from __future__ import annotations

import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agents.actions import AgentDeleteAction, AgentUpdateAction
from agents.errors import AgentNotFound
from agents.models import Agent
from agents.selectors import (
    agent_get,
    agent_list,
    agent_live,
    agent_name,
    agent_resource,
    agent_version,
)
from core.actions.bus import execute
from core.models import Tenant
from core.tenancy import NoTenantScope, tenant_scope
from tests.conftest import forget_cached_rows
from tests.factories import make_agent, make_tenant


def test_the_live_agent_tells_its_tenant_and_the_version_in_force(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    live = agent_live(agent.pk)
    assert (live.agent_id, live.tenant_id, live.version_id) == (agent.pk, tenant.pk, agent.version_id)


@pytest.mark.parametrize("state", ["draft", "deleted", "unknown"])
def test_other_agents_answer_nobody(tenant: Tenant, state: str) -> None:
    agent = make_agent(tenant, draft=state == "draft")
    if state == "deleted":
        with tenant_scope(tenant.pk):
            execute(AgentDeleteAction(agent_id=agent.pk, actor="test"))
    with pytest.raises(AgentNotFound):
        agent_live(uuid.uuid4() if state == "unknown" else agent.pk)


def test_a_hot_agent_costs_no_query(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    agent_live(agent.pk)
    agent_version(agent.version_id)
    with CaptureQueriesContext(connection) as queries:
        for _ in range(10):
            agent_live(agent.pk)
            agent_version(agent.version_id)
    assert len(queries) == 0


def test_a_change_is_in_force_once_the_cache_forgets(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    before = agent_live(agent.pk)
    with tenant_scope(tenant.pk):
        execute(AgentUpdateAction(agent_id=agent.pk, config={"model": "long"}, actor="test"))
    forget_cached_rows()
    after = agent_live(agent.pk)
    assert after.version_id != before.version_id
    assert agent_version(after.version_id).config.model == "long"
    assert agent_version(before.version_id).config.model == "echo"


def test_a_pinned_version_outlives_its_agent(tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions="Be brief.")
    with tenant_scope(tenant.pk):
        execute(AgentDeleteAction(agent_id=agent.pk, actor="test"))
    pinned = agent_version(agent.version_id)
    assert (pinned.agent_id, pinned.tenant_id, pinned.number) == (agent.pk, tenant.pk, 1)
    assert pinned.config.instructions == "Be brief."


def test_agents_are_found_in_their_tenant_only(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    with tenant_scope(tenant.pk):
        assert agent_get(agent.pk) == agent
    with tenant_scope(make_tenant().pk), pytest.raises(AgentNotFound):
        agent_get(agent.pk)
    with pytest.raises(NoTenantScope):
        agent_get(agent.pk)


def test_lists_are_pages_of_ones_own_living_agents(tenant: Tenant) -> None:
    agents = [make_agent(tenant) for _ in range(4)]
    make_agent(make_tenant())
    Agent.unscoped.filter(pk=agents[1].pk).update(deleted_at="2026-01-01T00:00:00Z")
    mine = sorted(agent.pk for agent in agents if agent != agents[1])
    with tenant_scope(tenant.pk):
        assert [agent.pk for agent in agent_list(None, 10)] == mine
        assert [agent.pk for agent in agent_list(None, 2)] == mine[:2]
        assert [agent.pk for agent in agent_list(mine[1], 10)] == mine[2:]
        assert agent_list(mine[-1], 10) == []


def test_a_page_of_agents_costs_one_query(tenant: Tenant) -> None:
    for _ in range(5):
        make_agent(tenant)
    with tenant_scope(tenant.pk), CaptureQueriesContext(connection) as queries:
        for agent in agent_list(None, 10):
            agent_resource(agent)
    assert len(queries) == 1


def test_an_agents_name_is_todays(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    assert agent_name(agent.pk) == "Test agent"
    with tenant_scope(tenant.pk):
        execute(AgentUpdateAction(agent_id=agent.pk, name="Grace", actor="test"))
        execute(AgentDeleteAction(agent_id=agent.pk, actor="test"))
    forget_cached_rows()
    assert agent_name(agent.pk) == "Grace"
    assert agent_name(uuid.uuid4()) == ""
