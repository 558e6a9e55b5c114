"""The rules of agent management."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connection, transaction
from pydantic import ValidationError

from agents.actions import AgentCreateAction, AgentDeleteAction, AgentResource, AgentUpdateAction
from agents.errors import AgentNotFound, SlugTaken
from agents.models import Agent, AgentVersion
from core.actions.bus import execute
from core.errors import ValidationFailed
from core.models import Tenant
from core.tenancy import NoTenantScope, tenant_scope
from tests.factories import make_agent, make_tenant

CONFIG = {"provider": "scripted", "model": "echo"}


def create(tenant: Tenant, **fields: Any) -> AgentResource:
    action = AgentCreateAction(
        **{"name": "Ada", "type": "assistant", "config": CONFIG, "actor": "test", **fields}
    )
    with tenant_scope(tenant.pk):
        return execute(action)


def update(agent: AgentResource, tenant: Tenant, **fields: Any) -> AgentResource:
    with tenant_scope(tenant.pk):
        return execute(AgentUpdateAction(agent_id=agent.agent_id, actor="test", **fields))


def test_a_new_agent_is_published_with_version_one(tenant: Tenant) -> None:
    agent = create(tenant, name="  Ada Lovelace ", description="Counts.")
    assert (agent.slug, agent.name, agent.type, agent.description) == (
        "ada-lovelace",
        "Ada Lovelace",
        "assistant",
        "Counts.",
    )
    assert (agent.status, agent.version) == ("published", 1)
    row = Agent.unscoped.get(pk=agent.agent_id)
    assert row.tenant_id == tenant.pk
    version = AgentVersion.unscoped.get(agent=row)
    assert (version.pk, version.tenant_id, version.author) == (row.version_id, tenant.pk, "test")
    assert version.config["model"] == "echo"


def test_a_draft_is_a_draft_until_it_is_published(tenant: Tenant) -> None:
    agent = create(tenant, draft=True)
    assert agent.status == "draft"
    assert update(agent, tenant, draft=False).status == "published"
    assert update(agent, tenant, draft=True).status == "draft"


def test_what_is_absent_stays(tenant: Tenant) -> None:
    agent = create(tenant, description="Counts.", config=CONFIG | {"instructions": "Be brief."})
    changed = update(agent, tenant, name="Grace")
    assert changed.name == "Grace"
    assert (changed.slug, changed.description, changed.type, changed.status, changed.version) == (
        agent.slug,
        agent.description,
        agent.type,
        agent.status,
        1,
    )
    assert changed.config == agent.config


def test_a_changed_configuration_is_a_new_version_merged_over_the_old(tenant: Tenant) -> None:
    agent = create(tenant, config=CONFIG | {"instructions": "Be brief.", "temperature": 0.5})
    changed = update(agent, tenant, config={"temperature": 1.5})
    assert changed.version == 2
    assert (changed.config.temperature, changed.config.instructions) == (1.5, "Be brief.")
    first, second = AgentVersion.unscoped.filter(agent_id=agent.agent_id).order_by("number")
    assert (first.config["temperature"], second.config["temperature"]) == (0.5, 1.5)


def test_a_null_takes_a_setting_back(tenant: Tenant) -> None:
    agent = create(tenant, config=CONFIG | {"temperature": 0.5})
    assert update(agent, tenant, config={"temperature": None}).config.temperature is None


def test_the_same_configuration_again_is_no_new_version(tenant: Tenant) -> None:
    agent = create(tenant)
    assert update(agent, tenant, config={}).version == 1
    assert update(agent, tenant, config=CONFIG).version == 1


def test_a_bad_configuration_changes_nothing(committed_tenant: Tenant) -> None:
    agent = create(committed_tenant)
    with pytest.raises(ValidationFailed) as refused:
        update(agent, committed_tenant, name="Grace", config={"temperature": 7})
    assert set(refused.value.details) == {"config.temperature"}
    row = Agent.unscoped.get(pk=agent.agent_id)
    assert row.name == "Ada"
    assert AgentVersion.unscoped.filter(agent=row).count() == 1


def test_version_numbers_have_no_holes_and_no_twins(committed_tenant: Tenant) -> None:
    agent = create(committed_tenant)
    writers, rounds = 6, 4
    barrier = Barrier(writers)

    def write(writer: int) -> list[int]:
        try:
            barrier.wait(timeout=30)
            return [
                update(agent, committed_tenant, config={"instructions": f"{writer}-{step}"}).version
                for step in range(rounds)
            ]
        finally:
            connection.close()

    with ThreadPoolExecutor(writers) as threads:
        told = sorted(number for numbers in threads.map(write, range(writers)) for number in numbers)
    expected = list(range(2, writers * rounds + 2))
    assert told == expected
    rows = AgentVersion.unscoped.filter(agent_id=agent.agent_id).order_by("number")
    assert [row.number for row in rows] == [1, *expected]
    assert Agent.unscoped.get(pk=agent.agent_id).version.number == expected[-1]


def test_a_slug_that_is_taken_is_refused(tenant: Tenant) -> None:
    create(tenant, slug="ada")
    other = create(tenant, slug="grace")
    with pytest.raises(SlugTaken) as refused, transaction.atomic():
        create(tenant, slug="ada")
    assert refused.value.details == {"slug": "ada"}
    with pytest.raises(SlugTaken), transaction.atomic():
        update(other, tenant, slug="ada")


def test_two_tenants_may_use_the_same_slug(tenant: Tenant) -> None:
    assert create(tenant, slug="ada").slug == create(make_tenant(), slug="ada").slug


def test_a_deleted_agents_slug_is_free_again(tenant: Tenant) -> None:
    agent = create(tenant, slug="ada")
    with tenant_scope(tenant.pk):
        execute(AgentDeleteAction(agent_id=agent.agent_id, actor="test"))
    assert create(tenant, slug="ada").agent_id != agent.agent_id


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Ada", "ada"),
        ("¿Qué tal?", "que-tal"),
        ("__x__", "x"),
        ("日本語", "agent"),
        ("a_b", "a-b"),
        ("-", "agent"),
    ],
)
def test_a_slug_is_made_of_the_name(tenant: Tenant, name: str, slug: str) -> None:
    assert create(tenant, name=name).slug == slug


def test_a_made_slug_that_is_taken_gets_a_suffix(tenant: Tenant) -> None:
    slugs = {create(tenant, name="x" * 120).slug for _ in range(5)}
    assert len(slugs) == 5
    assert all(len(slug) <= 40 for slug in slugs)


@pytest.mark.parametrize("slug", ["Ada", "-ada", "ada-", "a_b", "ada\n", "", "x" * 41, "ä"], ids=repr)
def test_what_is_no_slug(slug: str) -> None:
    with pytest.raises(ValidationError):
        AgentCreateAction(name="Ada", type="assistant", config=CONFIG, slug=slug, actor="test")


def test_a_tier_may_list_its_models(db: None) -> None:
    tenant = make_tenant(allowed_models=["echo"])
    agent = create(tenant)
    for change in (
        lambda: create(tenant, config=CONFIG | {"model": "long"}),
        lambda: update(agent, tenant, config={"model": "long"}),
    ):
        with pytest.raises(ValidationFailed) as refused, transaction.atomic():
            change()
        assert set(refused.value.details) == {"config.model"}
    assert AgentVersion.unscoped.filter(tenant=tenant).count() == 1


def test_a_tiers_list_holds_for_the_fallback_too(db: None) -> None:
    tenant = make_tenant(allowed_models=["echo", "demo"])
    fallback = {"provider": "scripted", "model": "demo"}
    agent = create(tenant, config=CONFIG | {"fallback": fallback})
    assert agent.config.fallback is not None
    for change in (
        lambda: create(tenant, config=CONFIG | {"fallback": fallback | {"model": "long"}}),
        lambda: update(agent, tenant, config={"fallback": fallback | {"model": "long"}}),
    ):
        with pytest.raises(ValidationFailed) as refused, transaction.atomic():
            change()
        assert set(refused.value.details) == {"config.fallback.model"}
    assert update(agent, tenant, config={"fallback": None}).config.fallback is None


def test_a_deleted_agent_is_gone_and_its_history_stays(tenant: Tenant) -> None:
    agent = create(tenant)
    with tenant_scope(tenant.pk):
        execute(AgentDeleteAction(agent_id=agent.agent_id, actor="test"))
        for action in (
            AgentDeleteAction(agent_id=agent.agent_id, actor="test"),
            AgentUpdateAction(agent_id=agent.agent_id, name="Grace", actor="test"),
        ):
            with pytest.raises(AgentNotFound), transaction.atomic():
                execute(action)
    assert AgentVersion.unscoped.filter(agent_id=agent.agent_id).count() == 1


def test_another_tenants_agent_does_not_exist(tenant: Tenant) -> None:
    agent = create(tenant)
    other = make_tenant()
    with pytest.raises(AgentNotFound), transaction.atomic():
        update(agent, other, name="Mine now")
    with tenant_scope(other.pk), pytest.raises(AgentNotFound), transaction.atomic():
        execute(AgentDeleteAction(agent_id=agent.agent_id, actor="test"))
    row = Agent.unscoped.get(pk=agent.agent_id)
    assert (row.name, row.deleted_at) == ("Ada", None)


def test_nothing_is_made_without_a_tenant(db: None) -> None:
    with pytest.raises(NoTenantScope), transaction.atomic():
        execute(AgentCreateAction(name="Ada", type="assistant", config=CONFIG, actor="test"))


def test_a_version_never_changes(tenant: Tenant) -> None:
    version = make_agent(tenant).version
    version.config = {"provider": "scripted", "model": "long"}
    with pytest.raises(TypeError, match="never changes"):
        version.save()
    with pytest.raises(TypeError, match="never changes"):
        AgentVersion.unscoped.get(pk=version.pk).save(update_fields=["author"])
    assert AgentVersion.unscoped.get(pk=version.pk).config["model"] == "echo"


def test_agents_of_one_name_made_at_once_get_slugs_of_their_own(committed_tenant: Tenant) -> None:
    rivals = 6
    barrier = Barrier(rivals)

    def make(_: int) -> list[str]:
        try:
            slugs = []
            for number in range(3):
                barrier.wait(timeout=30)
                slugs.append(create(committed_tenant, name=f"Ada {number}").slug)
            return slugs
        finally:
            connection.close()

    with ThreadPoolExecutor(rivals) as threads:
        slugs = [slug for made in threads.map(make, range(rivals)) for slug in made]
    assert len(set(slugs)) == rivals * 3
    assert {"ada-0", "ada-1", "ada-2"} <= set(slugs)
