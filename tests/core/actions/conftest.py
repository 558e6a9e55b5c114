"""Verbs that exist for one test only, and what waits in the real queues."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import current_app
from kombu import pools

from core import valkey
from core.actions import registry
from core.actions.base import Action, Result, Settlement
from core.broker.scripts import ROOT
from core.models import Task


class NoteResult(Result):
    text: str


class NoteAction(Action[NoteResult]):
    """Work of a test."""

    verb = "test.note"
    queue = ("orchestrator", "note")

    text: str = "hello"


class EchoAction(Action[NoteResult]):
    """A second verb, for actions inside actions and for callbacks."""

    verb = "test.echo"
    queue = ("orchestrator", "echo")

    text: str = "hello"
    task_id: uuid.UUID | None = None


class LocalAction(Action[None]):
    """A verb without a queue."""

    verb = "test.local"


def left_nothing(action: Any, task: Task) -> Settlement:
    return Settlement(Task.Status.FAILED)


# Of work whose dead attempts leave nothing, unless a test says otherwise.
works = functools.partial(registry.works, abandoned=left_nothing)


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that the test registers are forgotten at its end."""
    monkeypatch.setattr(registry, "_handlers", dict(registry._handlers))


@pytest.fixture
def broker_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Celery's producers lead to an address where nobody listens."""
    with current_app.connection_for_write("nooble+socket:///nonexistent/valkey.sock") as nowhere:
        monkeypatch.setattr(current_app.amqp, "_producer_pool", pools.producers[nowhere])
        yield


Waiting = Callable[[str, uuid.UUID], list[dict[str, Any]]]


@pytest.fixture
def waiting() -> Waiting:
    """The messages about a task that wait in the queues of a domain."""

    def look(domain: str, task_id: uuid.UUID) -> list[dict[str, Any]]:
        queues = valkey.client().scan_iter(f"{ROOT}:{domain}:m:*", count=1_000)
        entries = [entry for queue in queues for entry in valkey.client().lrange(queue, 0, -1)]
        messages = [json.loads(entry.split(b"|", 4)[4]) for entry in entries]
        return [message for message in messages if message["headers"]["id"] == str(task_id)]

    return look
