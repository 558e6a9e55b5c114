"""Versions: made, compared, published, gone back to; and who was faster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from agents.actions import (
    AgentDeleteAction,
    AgentPublishAction,
    AgentResource,
    AgentRestoreAction,
    AgentRollbackAction,
    AgentUpdateAction,
)
from agents.errors import AgentNotFound, StaleVersion, VersionNotFound
from agents.models import Agent, AgentVersion
from agents.selectors import (
    agent_changes,
    agent_get,
    agent_live,
    agent_resource,
    version_changes,
    version_get,
    version_list,
)
from core.actions.bus import execute
from core.errors import ValidationFailed
from core.models import AuditEntry, Tenant
from core.tenancy import tenant_scope
from tests.conftest import forget_cached_rows
from tests.factories import make_agent, make_session, make_tenant


def act(agent: Agent, kind: Any, **fields: Any) -> Any:
    with tenant_scope(agent.tenant_id):
        return execute(kind(agent_id=agent.pk, actor="test", **fields))


def update(agent: Agent, **fields: Any) -> AgentResource:
    result: AgentResource = act(agent, AgentUpdateAction, **fields)
    return result


def answers(agent: Agent) -> int:
    """The number of the version that answers now."""
    forget_cached_rows()
    return int(AgentVersion.unscoped.get(pk=agent_live(agent.pk).version_id).number)


def versions(agent: Agent) -> list[AgentVersion]:
    return list(AgentVersion.unscoped.filter(agent=agent).order_by("number"))


def audited(agent: Agent) -> list[AuditEntry]:
    return list(AuditEntry.unscoped.filter(object_id=str(agent.pk)).order_by("pk"))


# --- Draft and published --------------------------------------------------------------------------


def test_a_change_answers_at_once(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    changed = update(agent, config={"model": "long"}, note="Longer answers")
    assert (changed.version, changed.published_version) == (2, 2)
    assert answers(agent) == 2
    assert versions(agent)[1].note == "Longer answers"


def test_a_change_may_wait_while_the_agent_goes_on(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    held = update(agent, config={"model": "long"}, publish=False)
    assert (held.version, held.published_version, held.status) == (2, 1, "published")
    assert held.config.model == "long"
    assert answers(agent) == 1

    # A change of something else publishes nothing.
    assert update(agent, name="Grace").published_version == 1
    assert answers(agent) == 1
    # The next one builds on what waits.
    again = update(agent, config={"max_turns": 3}, publish=False)
    assert (again.config.model, again.config.max_turns, answers(agent)) == ("long", 3, 1)

    published = act(agent, AgentPublishAction)
    assert (published.version, published.published_version) == (3, 3)
    assert answers(agent) == 3
    assert act(agent, AgentPublishAction).etag == published.etag


def test_a_draft_answers_nobody_until_it_is_published(tenant: Tenant) -> None:
    agent = make_agent(tenant, draft=True)
    assert update(agent, config={"model": "long"}).published_version is None
    with pytest.raises(AgentNotFound):
        answers(agent)
    assert act(agent, AgentPublishAction).status == "published"
    assert answers(agent) == 2
    assert update(agent, draft=True).published_version is None
    with pytest.raises(AgentNotFound):
        answers(agent)
    assert update(agent, draft=False, config={"max_turns": 3}).published_version == 3


def test_a_row_cannot_be_published_without_a_version(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    for fields in ({"published": None}, {"status": "draft"}):
        with pytest.raises(IntegrityError, match="agent_published"), transaction.atomic():
            Agent.unscoped.filter(pk=agent.pk).update(**fields)


# --- Back -------------------------------------------------------------------------------------------


def test_going_back_is_a_new_version_that_says_so(tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions="One")
    update(agent, config={"instructions": "Two"})
    back = act(agent, AgentRollbackAction, version=1)
    assert (back.version, back.published_version, back.config.instructions) == (3, 3, "One")
    assert answers(agent) == 3
    act(agent, AgentRollbackAction, version=2, note="Was right")
    first, second, third, fourth = versions(agent)
    assert (third.config, fourth.config) == (first.config, second.config)
    assert [version.note for version in (third, fourth)] == [
        "Back to version 1",
        "Back to version 2: Was right",
    ]
    entry = audited(agent)[-1]
    assert (entry.verb, entry.before["config.instructions"]) == ("agent.rollback", "One")
    assert entry.after["config.instructions"] == "Two"


def test_a_note_never_breaks_a_rollback(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    act(agent, AgentRollbackAction, version=1, note="x" * 500)
    assert len(versions(agent)[1].note) == 500


def test_a_draft_goes_back_and_stays_a_draft(tenant: Tenant) -> None:
    agent = make_agent(tenant, draft=True)
    update(agent, config={"model": "long"})
    back = act(agent, AgentRollbackAction, version=1)
    assert (back.version, back.status, back.published_version) == (3, "draft", None)


def test_what_waits_is_not_published_by_the_way_back_but_replaced(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    update(agent, config={"model": "long"}, publish=False)
    act(agent, AgentRollbackAction, version=1)
    assert answers(agent) == 3
    assert versions(agent)[2].config["model"] == "echo"


@pytest.mark.parametrize("number", [2, 99, 2**31 - 1])
def test_a_version_that_never_was_is_not_found(tenant: Tenant, number: int) -> None:
    agent = make_agent(tenant)
    other = make_agent(tenant)
    update(other, config={"model": "long"})
    with pytest.raises(VersionNotFound), transaction.atomic():
        act(agent, AgentRollbackAction, version=number)
    assert len(versions(agent)) == 1


def test_going_back_needs_what_the_tier_allows_today(db: None) -> None:
    tenant = make_tenant()
    agent = make_agent(tenant, model="long")
    update(agent, config={"model": "echo"})
    tenant.tier.allowed_models = ["echo"]
    tenant.tier.save()
    with pytest.raises(ValidationFailed) as refused, transaction.atomic():
        act(agent, AgentRollbackAction, version=1)
    assert set(refused.value.details) == {"config.model"}
    assert len(versions(agent)) == 2


def test_another_tenants_agent_cannot_be_published_or_rolled_back(tenant: Tenant) -> None:
    agent = make_agent(tenant, draft=True)
    with tenant_scope(make_tenant().pk):
        for action in (
            AgentPublishAction(agent_id=agent.pk, actor="test"),
            AgentRollbackAction(agent_id=agent.pk, actor="test", version=1),
            AgentRestoreAction(agent_id=agent.pk, actor="test"),
        ):
            with pytest.raises(AgentNotFound), transaction.atomic():
                execute(action)
    assert len(audited(agent)) == 1


# --- Compare ----------------------------------------------------------------------------------------


def test_two_versions_are_compared_field_by_field(tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions="Be kind.\nBe brief.", temperature=0.5)
    fallback = {"provider": "groq", "model": "llama"}
    update(agent, config={"instructions": "Be kind.", "temperature": None, "fallback": fallback})
    update(agent, config={"fallback": fallback | {"model": "other"}})
    with tenant_scope(tenant.pk):
        first, second, third = (version_get(agent, number) for number in (1, 2, 3))
    changes = {change.field: change for change in version_changes(first, second)}
    assert changes.keys() == {"config.fallback", "config.instructions", "config.temperature"}
    assert (changes["config.temperature"].before, changes["config.temperature"].after) == (0.5, None)
    assert "-Be brief." in changes["config.instructions"].diff.splitlines()
    assert [change.as_dict() for change in version_changes(second, third)] == [
        {"field": "config.fallback.model", "before": "llama", "after": "other"}
    ]
    assert version_changes(third, third) == []


def test_what_a_version_leaves_to_the_defaults_is_no_difference(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    update(agent, config={"max_turns": 3})
    AgentVersion.unscoped.filter(agent=agent, number=1).update(
        config={"provider": "scripted", "model": "echo"}
    )
    with tenant_scope(tenant.pk):
        changes = version_changes(version_get(agent, 1), version_get(agent, 2))
    assert [change.field for change in changes] == ["config.max_turns"]


def test_versions_are_listed_newest_first_in_pages(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    for turns in range(1, 5):
        update(agent, config={"max_turns": turns})
    with tenant_scope(tenant.pk):
        assert [version.number for version in version_list(agent, None, 3)] == [5, 4, 3]
        assert [version.number for version in version_list(agent, 3, 3)] == [2, 1]


# --- Two at once --------------------------------------------------------------------------------------


def test_every_change_has_a_tag_of_its_own(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    tags = ["1"]
    for fields in (
        {"name": "Grace"},
        {"description": "Counts."},
        {"config": {"max_turns": 3}},
        {"config": {"max_turns": 4}, "publish": False},
        {"slug": "grace"},
        {"draft": True},
    ):
        tags.append(update(agent, **fields).etag)
    assert tags == ["1", "1.1", "1.2", "2", "3", "3.1", "3.2"]
    # What changes nothing keeps it.
    assert update(agent, name="Grace", config={}).etag == "3.2"
    act(agent, AgentDeleteAction)
    assert act(agent, AgentRestoreAction).etag == "3.4"


def test_a_stale_change_is_refused_with_what_has_happened_since(tenant: Tenant) -> None:
    agent = make_agent(tenant, instructions="One\nTwo")
    seen = update(agent, description="Counts.").etag
    update(agent, name="Grace", config={"instructions": "One\nThree"})
    update(agent, name="Ada", draft=True)
    with pytest.raises(StaleVersion) as refused, transaction.atomic():
        update(agent, config={"max_turns": 3}, if_match=(seen,))
    details = refused.value.details
    assert (details["etag"], details["version"]) == ("2.1", 2)
    diff = {change["field"]: change for change in details["diff"]}
    assert diff.keys() == {"name", "status", "published_version", "config.instructions"}
    assert (diff["name"]["before"], diff["name"]["after"]) == ("Test agent", "Ada")
    assert "+Three" in diff["config.instructions"]["diff"].splitlines()
    assert len(versions(agent)) == 2


def test_what_was_taken_back_since_is_no_difference(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    update(agent, name="Grace")
    update(agent, name="Test agent")
    with pytest.raises(StaleVersion) as refused, transaction.atomic():
        update(agent, name="Ada", if_match=("1",))
    assert refused.value.details["diff"] == []


def test_the_present_tag_passes_and_so_does_any(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    assert update(agent, name="Grace", if_match=("1",)).name == "Grace"
    assert update(agent, name="Ada", if_match=("7", "1.1")).name == "Ada"
    assert update(agent, name="Edith", if_match=("*",)).name == "Edith"
    assert update(agent, name="Joan").name == "Joan"


@pytest.mark.parametrize("tag", ["", "x", "0", "99", "1.99", "9" * 40, "1.1.1", "-1"])
def test_a_tag_that_was_never_given_is_stale(tenant: Tenant, tag: str) -> None:
    agent = make_agent(tenant)
    with pytest.raises(StaleVersion), transaction.atomic():
        update(agent, name="Grace", if_match=(tag,))
    assert Agent.unscoped.get(pk=agent.pk).name == "Test agent"


@pytest.mark.parametrize("kind", [AgentDeleteAction, AgentPublishAction])
def test_other_verbs_can_be_stale_too(tenant: Tenant, kind: Any) -> None:
    agent = make_agent(tenant)
    update(agent, name="Grace")
    with pytest.raises(StaleVersion), transaction.atomic():
        act(agent, kind, if_match=("1",))
    with pytest.raises(StaleVersion), transaction.atomic():
        act(agent, AgentRollbackAction, version=1, if_match=("1",))


def test_an_agent_from_before_the_record_is_compared_by_its_versions(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    update(agent, name="Grace", config={"max_turns": 3})
    AuditEntry.unscoped.filter(object_id=str(agent.pk)).delete()
    with tenant_scope(tenant.pk):
        changes = agent_changes(agent_get(agent.pk), "1")
    assert changes is not None
    assert [change.field for change in changes] == ["config.max_turns"]


def test_of_editors_who_start_from_the_same_state_one_wins(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    editors = 6
    barrier = Barrier(editors)

    def edit(number: int) -> str | None:
        try:
            barrier.wait(timeout=30)
            return update(agent, config={"max_turns": number}, name=f"Name {number}", if_match=("1",)).name
        except StaleVersion as stale:
            assert stale.details["version"] == 2
            assert {change["field"] for change in stale.details["diff"]} >= {"name", "config.max_turns"}
            return None
        finally:
            connection.close()

    with ThreadPoolExecutor(editors) as threads:
        told = [name for name in threads.map(edit, range(20, 20 + editors)) if name]
    row = Agent.unscoped.select_related("version").get(pk=agent.pk)
    assert told == [row.name]
    assert f"Name {row.version.config['max_turns']}" == row.name
    assert len(versions(agent)) == 2
    assert len(audited(agent)) == 2


def test_editors_who_try_again_lose_nothing(committed_tenant: Tenant) -> None:
    """Each adds a line to what it has read; in the end all lines are there."""
    agent = make_agent(committed_tenant)
    editors, rounds = 4, 5

    def edit(number: int) -> None:
        try:
            for step in range(rounds):
                while True:
                    with tenant_scope(committed_tenant.pk):
                        read = agent_resource(agent_get(agent.pk))
                    lines = f"{read.config.instructions}{number}-{step}\n"
                    try:
                        update(agent, config={"instructions": lines}, if_match=(read.etag,))
                    except StaleVersion:
                        continue
                    break
        finally:
            connection.close()

    with ThreadPoolExecutor(editors) as threads:
        list(threads.map(edit, range(editors)))
    text = versions(agent)[-1].config["instructions"]
    assert sorted(text.split()) == sorted(
        f"{editor}-{step}" for editor in range(editors) for step in range(rounds)
    )


def test_an_open_change_does_not_hold_up_a_new_session(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)

    def begin() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '5s'")
            make_session(agent)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads, transaction.atomic():
        update(agent, name="Grace", config={"max_turns": 3})
        threads.submit(begin).result(timeout=30)


# --- The record ---------------------------------------------------------------------------------------


def test_every_change_is_on_record_with_what_it_changed(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    update(agent, name="Grace", config={"max_turns": 3, "model": "long"})
    update(agent, name="Grace")  # no change
    act(agent, AgentDeleteAction)
    act(agent, AgentRestoreAction)
    created, updated, deleted, restored = audited(agent)
    assert [entry.verb for entry in (created, updated, deleted, restored)] == [
        "agent.create",
        "agent.update",
        "agent.delete",
        "agent.restore",
    ]
    assert created.before == {}
    assert created.after["config"]["model"] == "echo"
    assert updated.before == {
        "name": "Test agent",
        "version": 1,
        "published_version": 1,
        "etag": "1",
        "config.max_turns": 10,
        "config.model": "echo",
    }
    assert updated.after == {
        "name": "Grace",
        "version": 2,
        "published_version": 2,
        "etag": "2",
        "config.max_turns": 3,
        "config.model": "long",
    }
    assert (deleted.before["deleted"], deleted.after["deleted"]) == (False, True)
    assert (restored.before["deleted"], restored.after["deleted"]) == (True, False)
    assert {entry.tenant_id for entry in audited(agent)} == {tenant.pk}
