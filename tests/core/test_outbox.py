"""Notices: written with their change, told after it, in order, at least once."""

from __future__ import annotations

import datetime
import json
import threading
import uuid
from collections.abc import Iterator, Sequence

import pytest
import redis
from django.db import connection, transaction
from django.db.models.functions import Now

from agents.events import (
    AgentNotice,
    AgentUpdated,
    notify_agent,
    notify_template,
    notify_validated,
)
from agents.models import Agent, AgentTemplate
from core import outbox
from core.actions.bus import execute
from core.actions.notices import NoticeRelayAction
from core.models import Notice, Task, Tenant
from core.outbox import forget_old, notify, relay_left
from core.tenancy import tenant_scope
from tests.factories import make_agent, make_tenant


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Notice]]:
    """What subscribers are given."""
    given: list[Notice] = []

    def subscriber(notices: Sequence[Notice]) -> None:
        given.extend(notices)

    monkeypatch.setattr(outbox, "subscribers", [subscriber])
    yield given


@pytest.fixture
def agent(committed_tenant: Tenant) -> Agent:
    return make_agent(committed_tenant)


def relay(agent: Agent, subject: str = "") -> None:
    with tenant_scope(agent.tenant_id):
        execute(NoticeRelayAction(subject=subject or str(agent.pk)))


def change(agent: Agent, *changes: str) -> None:
    with tenant_scope(agent.tenant_id), transaction.atomic():
        notify_agent("agent_updated", agent, changes)


def test_a_change_that_is_not_committed_is_not_told(agent: Agent, heard: list[Notice]) -> None:
    with pytest.raises(RuntimeError, match="no more"), tenant_scope(agent.tenant_id), transaction.atomic():
        notify_agent("agent_updated", agent)
        raise RuntimeError("no more")
    assert not Notice.unscoped.exists()
    assert not Task.unscoped.exists()


def test_a_notice_outside_a_transaction_is_a_bug(agent: Agent) -> None:
    with tenant_scope(agent.tenant_id), pytest.raises(RuntimeError, match="transaction"):
        notify_agent("agent_updated", agent)


def test_a_notice_brings_the_task_that_relays_it(agent: Agent, heard: list[Notice]) -> None:
    change(agent, "name")
    task = Task.unscoped.get()
    assert (task.action, task.payload) == ("notice.relay", {"subject": str(agent.pk)})
    assert task.queue == f"orchestrator:{agent.tenant_id}:notice_relay:high"
    relay(agent)
    [notice] = heard
    assert notice.body["data"]["changes"] == ["name"]
    relay(agent)
    assert len(heard) == 1


def test_notices_of_one_subject_are_told_in_order_whoever_relays(agent: Agent, heard: list[Notice]) -> None:
    """A relay that fails leaves its notice to the next one."""
    for name in ("a", "b", "c"):
        change(agent, name)
    relay(agent)
    assert [notice.body["data"]["changes"] for notice in heard] == [["a"], ["b"], ["c"]]


def test_ids_of_one_subject_grow_in_the_order_of_commits(agent: Agent, heard: list[Notice]) -> None:
    """Who comes second waits for the first one's commit before it gets its id."""
    wrote, go_on = threading.Event(), threading.Event()

    def first() -> None:
        try:
            with tenant_scope(agent.tenant_id), transaction.atomic():
                notify_agent("agent_updated", agent, ["first"])
                wrote.set()
                assert go_on.wait(30)
        finally:
            connection.close()

    def second() -> None:
        assert wrote.wait(30)
        try:
            change(agent, "second")
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    assert wrote.wait(30)
    relay(agent)
    assert heard == []
    threads[1].join(0.3)
    assert threads[1].is_alive()  # it waits
    go_on.set()
    for thread in threads:
        thread.join(30)
    relay(agent)
    assert [notice.body["data"]["changes"] for notice in heard] == [["first"], ["second"]]


def test_a_subscriber_that_fails_leaves_the_notice(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(notices: Sequence[Notice]) -> None:
        raise OSError("no more")

    monkeypatch.setattr(outbox, "subscribers", [failing])
    change(agent)
    with pytest.raises(OSError, match="no more"):
        relay(agent)
    assert Notice.unscoped.get().relayed_at is None


def test_dashboards_that_cannot_be_told_hold_up_nobody(
    agent: Agent, heard: list[Notice], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(outbox, "publish_update", away)
    change(agent)
    relay(agent)
    assert len(heard) == 1


def test_what_no_task_has_relayed_is_found(agent: Agent, heard: list[Notice]) -> None:
    change(agent)
    Task.unscoped.all().delete()
    relay_left()
    assert not Task.unscoped.exists()  # its task may still be on the way
    Notice.unscoped.update(created_at=Now() - datetime.timedelta(minutes=11))
    relay_left()
    task = Task.unscoped.get()
    assert (task.action, task.tenant_id) == ("notice.relay", agent.tenant_id)
    relay(agent)
    assert len(heard) == 1


def test_old_notices_are_forgotten_once_they_are_told(agent: Agent, heard: list[Notice]) -> None:
    change(agent)
    relay(agent)
    change(agent)
    assert forget_old() == 0
    Notice.unscoped.update(created_at=Now() - datetime.timedelta(days=31))
    assert forget_old() == 1
    assert Notice.unscoped.get().relayed_at is None


def test_an_event_that_is_sent_twice_is_written_once(agent: Agent) -> None:
    data = AgentNotice(agent_id=agent.pk, agent_name="", agent_type="")
    event = AgentUpdated(
        tenant_id=agent.tenant_id,
        task_id=None,
        global_task_id=None,
        session_id=None,
        data=data.model_dump() | {"changes": []},
    )
    other = make_tenant()
    for _ in range(2):
        with tenant_scope(agent.tenant_id), transaction.atomic():
            notify(event, agent.pk)
    # Another tenant's event may bear the same id.
    with tenant_scope(other.pk), transaction.atomic():
        notify(event, agent.pk)
    assert Notice.unscoped.filter(event_id=event.event_id).count() == 2


def test_facts_with_two_names_are_told_under_both(agent: Agent, heard: list[Notice]) -> None:
    template = AgentTemplate.objects.create(
        tenant_id=agent.tenant_id, slug="desk", name="Desk", type="assistant", config={}
    )
    everybodys = AgentTemplate.objects.create(slug="desk", name="Desk", type="assistant", config={})
    with tenant_scope(agent.tenant_id), transaction.atomic():
        notify_validated(agent, valid=False, errors=[{"field": "model"}])
        notify_template("template_created", template)
        notify_template("template_updated", template)
        notify_template("template_created", everybodys)
    relay(agent)
    relay(agent, f"template:{template.pk}")
    assert [(notice.event, notice.body.get("alias_of")) for notice in heard] == [
        ("agent_validated", None),
        ("validation_complete", "agent_validated"),
        ("template_created", None),
        ("agent_template_created", "template_created"),
        ("template_updated", None),
    ]
    assert len({notice.event_id for notice in heard}) == 5
    for notice in heard:
        assert notice.body["event_id"] == str(notice.event_id)
        assert notice.body["event"] == notice.event
        assert json.dumps(notice.body)
    assert heard[0].body["data"]["valid"] is False
    assert heard[0].body["data"] == heard[1].body["data"]


def test_agents_are_told_with_all_that_the_documents_ask_for(agent: Agent, heard: list[Notice]) -> None:
    with tenant_scope(agent.tenant_id), transaction.atomic():
        notify_agent("agent_created", agent)
        notify_agent("agent_updated", agent, ["name", "config.model"])
        notify_agent("agent_deleted", agent)
    relay(agent)
    named = {
        "agent_id": str(agent.pk),
        "agent_name": agent.name,
        "agent_type": agent.type,
        "version": "1.0",
    }
    assert [(notice.event, notice.body["data"]) for notice in heard] == [
        ("agent_created", named),
        ("agent_updated", {**named, "changes": ["name", "config.model"]}),
        ("agent_deleted", named),
    ]
    for notice in heard:
        assert notice.body["service"] == "agent-management"
        uuid.UUID(notice.body["event_id"])
