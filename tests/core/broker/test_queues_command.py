"""`manage.py queues`: look, and throw one tenant's waiting work away."""

from __future__ import annotations

import time
from io import StringIO

import pytest
import redis
from django.core.management import CommandError, call_command

from core.broker import figures
from core.management.commands import queues as command
from core.models import Task, Tenant
from tests.core.broker.broker import Broker
from tests.factories import make_task, make_tenant


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(figures, "ROOT", made.root)
    monkeypatch.setattr(command, "ROOT", made.root)
    return made


def run(*words: str) -> list[list[str]]:
    out = StringIO()
    call_command("queues", *words, stdout=out)
    return [line.split() for line in out.getvalue().splitlines()]


def test_list(broker: Broker) -> None:
    broker.put("a", "one")
    broker.put("b", "two", domain="tool")
    lines = run("list")
    assert lines[1] == ["agent", "1", "0", "0", "1"]
    assert lines[-1] == ["dead", "letters:", "0"]
    assert [line[:5] for line in run("list", "agent")[1:]] == [["one", "1", "0", "10", "1"]]
    assert [line[:5] for line in run("list", "tool")[1:]] == [["two", "1", "0", "-", "1"]]


@pytest.mark.parametrize("spelling", ["agent_execution:one", "agent:one:execute:low"])
def test_list_of_a_name(broker: Broker, spelling: str) -> None:
    """Whichever way the queue is spelled; the document's name has no priority, so it is all of them."""
    for tag, tenant, priority in (
        ("a", "one", "low"),
        ("b", "one", "high"),
        ("c", "one", "low"),
        ("d", "two", "low"),
    ):
        broker.put(tag, tenant, priority)
    broker.put("e", "one", domain="tool")
    header, *lines = run("list", spelling)
    assert header == ["QUEUE", "WAITING", "OLDEST", "(s)"]
    low, high = ["agent:one:execute:low", "2"], ["agent:one:execute:high", "1"]
    assert [line[:2] for line in lines] == ([low] if spelling.endswith("low") else [high, low])
    assert run("list", "agent_tools:two") == [header]
    assert run("list", "agent-management.validation.one") == [header]


def test_list_of_what_is_no_queue(broker: Broker) -> None:
    with pytest.raises(CommandError, match="'orchestrator:tasks:one' is no queue here: tasks are rows"):
        run("list", "orchestrator:tasks:one")


def test_purge_cancels_what_waits_and_leaves_all_else(broker: Broker, committed_tenant: Tenant) -> None:
    other = make_tenant()
    name = committed_tenant.pk
    soon = int(time.time() * 1000) + 60_000
    broker.put("running", name)
    assert broker.next() is not None
    for number in range(3):
        broker.put(f"a{number}", name, "low")
    broker.put("later", name, due=soon)
    broker.put("tool", name, domain="tool")
    broker.put("other", other.pk)
    broker.put("other-later", other.pk, due=soon)
    rows = {
        "queued": make_task(committed_tenant, status="queued"),
        "pending": make_task(committed_tenant, status="pending"),
        "processing": make_task(committed_tenant, status="processing", attempt=1),
        "tool": make_task(committed_tenant, status="queued", queue=f"tool:{name}:call:low"),
        "other": make_task(other, status="queued"),
    }
    told = run("purge", name, "--domain", "agent")
    assert told == [
        ["agent:", "2", "tasks", "cancelled,", "3", "waiting", "and", "1", "delayed", "messages", "gone"],
    ]
    statuses = {key: Task.unscoped.get(pk=row.pk).status for key, row in rows.items()}
    assert statuses == {
        "queued": "cancelled",
        "pending": "cancelled",
        "processing": "processing",
        "tool": "queued",
        "other": "queued",
    }
    assert (broker.count("waiting", name), broker.count("running", name)) == (0, 1)
    assert broker.count("waiting", name, domain="tool") == 1
    assert broker.count("waiting", other.pk) == 1
    assert broker.client.zcard(f"{broker.root}:agent:delayed") == 1


def test_messages_only(broker: Broker, committed_tenant: Tenant) -> None:
    task = make_task(committed_tenant, status="queued")
    broker.put("a", committed_tenant.pk)
    run("purge", committed_tenant.pk, "--domain", "agent", "--messages-only")
    assert Task.unscoped.get(pk=task.pk).status == "queued"
    assert broker.count("waiting", committed_tenant.pk) == 0


@pytest.mark.parametrize(
    "words", [("purge", "one"), ("purge", "t*", "--domain", "agent"), ("list", "celery")]
)
def test_what_it_refuses(broker: Broker, words: tuple[str, ...]) -> None:
    with pytest.raises(CommandError):
        run(*words)


def test_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=1)
    monkeypatch.setattr(figures.valkey, "client", lambda: nobody)
    with pytest.raises(CommandError, match="does not answer"):
        run("list")
