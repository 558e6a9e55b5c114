"""Sending: into the log, then to the open sockets; over the real Valkey."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from channels.layers import get_channel_layer

from core import aio
from core.events import log
from core.events.base import Event
from core.events.groups import pubsub_channel, session_name, tenant_name
from core.events.log import append
from core.events.publisher import publish_to_tenant


class Note(Event):
    event: str = "note"
    service: Any = "agent-execution"


class End(Note):
    closes = "run"


@pytest.fixture
def session_id() -> str:
    return f"s-{uuid.uuid4().hex}"


def note(session_id: str | None, kind: type[Note] = Note, data: Any = "hello") -> Note:
    task_id = uuid.uuid5(uuid.NAMESPACE_OID, session_id or "")
    return kind(task_id=task_id, global_task_id=task_id, tenant_id="demo", session_id=session_id, data=data)


def heard(group: str, talk: Callable[[], Awaitable[Any]]) -> list[dict[str, Any]]:
    """What a member of the group hears while `talk` is going on."""

    async def listen() -> list[dict[str, Any]]:
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add(group, channel)
        await talk()
        await layer.group_send(group, {"type": "end"})
        messages: list[dict[str, Any]] = []
        async with asyncio.timeout(10):
            while (message := await layer.receive(channel))["type"] != "end":
                messages.append(message)
        await layer.group_discard(group, channel)
        return messages

    return aio.run(listen())


def test_a_published_event_is_kept_and_told_with_the_same_text(session_id: str) -> None:
    name = session_name("demo", session_id)
    event = note(session_id)
    [message] = heard(name, lambda: append(event, floor=0))
    [(seq, body)] = aio.run(log.read(name, 0))
    assert seq == 1
    assert message == {
        "type": "session.event",
        "tenant_id": "demo",
        "session_id": session_id,
        "seq": 1,
        "text": '{"seq":1,' + body.decode()[1:],
    }
    told = json.loads(message["text"])
    assert set(told) == {
        "event",
        "service",
        "event_id",
        "seq",
        "task_id",
        "global_task_id",
        "tenant_id",
        "session_id",
        "timestamp",
        "data",
    }
    assert (told["event"], told["data"], told["task_id"]) == ("note", "hello", str(event.task_id))


def test_a_refused_event_is_told_to_nobody(session_id: str) -> None:
    async def talk() -> None:
        assert await append(note(session_id, End), floor=0) == 1
        assert await append(note(session_id)) is None
        assert await append(note(session_id, End)) is None

    assert len(heard(session_name("demo", session_id), talk)) == 1


def test_another_tenants_session_of_the_same_name_hears_nothing(session_id: str) -> None:
    assert heard(session_name("other", session_id), lambda: append(note(session_id), floor=0)) == []


def test_a_tenants_sockets_hear_what_no_log_keeps(session_id: str) -> None:
    [message] = heard(tenant_name("demo"), lambda: publish_to_tenant(note(None)))
    assert (message["seq"], message["session_id"], message["tenant_id"]) == (None, None, "demo")
    assert json.loads(message["text"])["seq"] is None
    assert aio.run(log.last_seq(session_name("demo", session_id))) is None


def test_the_script_sends_where_the_channel_layer_listens() -> None:
    async def listens() -> str:
        name: str = get_channel_layer()._get_group_channel_name("s.0")
        return name

    assert aio.run(listens()) == pubsub_channel("s.0")


@pytest.mark.parametrize("text", ["", "¿Qué tal? 🎈", "a\x00b\n\u2028", "x" * 100_000])
def test_any_text_arrives_as_it_was_sent(session_id: str, text: str) -> None:
    event = note(session_id, data={"text": text})
    [message] = heard(session_name("demo", session_id), lambda: append(event, floor=0))
    assert json.loads(message["text"])["data"] == {"text": text}
    assert message["text"] == '{"seq":1,' + event.body().decode()[1:]


def test_hints_leave_in_the_order_of_the_log(session_id: str) -> None:
    async def talk() -> None:
        await asyncio.gather(*(append(note(session_id), floor=0) for _ in range(100)))

    told = heard(session_name("demo", session_id), talk)
    assert [message["seq"] for message in told] == list(range(1, 101))
