"""Questions that are too many, backlogs that are too long, and how long an answer will take."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.test import Client
from django.utils import translation

from agents.models import Agent
from core import aio, ratelimits, valkey
from core.actions.bus import execute
from core.broker import backlog
from core.broker.backlog import heard
from core.errors import RateLimited
from core.models import Task, Tenant
from core.tenancy import tenant_scope
from orchestrator.actions import ChatMessageSent, ChatSendMessageAction
from orchestrator.errors import QueueFull
from orchestrator.execution_actions import ExecutionStartAction
from orchestrator.routing import websocket_urlpatterns
from orchestrator.throttling import check_room, estimated_seconds
from tests.factories import make_agent, make_key, make_tenant

PATIENCE = 10  # seconds
SOMEBODY = "198.51.100.7"


def send(agent: Agent, **fields: Any) -> ChatMessageSent:
    with tenant_scope(agent.tenant_id):
        return execute(ChatSendMessageAction(agent_id=agent.pk, message="Hello?", **fields))


def run(agent: Agent) -> None:
    with tenant_scope(agent.tenant_id):
        execute(ExecutionStartAction(agent_id=agent.pk, messages=[{"role": "user", "content": "Hello?"}]))


def post(agent: Agent, *, ip: str = SOMEBODY, key: str = "", **fields: Any) -> Any:
    body = json.dumps({"agent_id": str(agent.pk), "message": "Hello?", **fields})
    headers = {"Idempotency-Key": key} if key else {}
    return Client().post(
        "/api/v1/chat/message", body, content_type="application/json", headers=headers, REMOTE_ADDR=ip
    )


# --- Questions ----------------------------------------------------------------------------------------


def test_a_session_may_be_sent_so_many_messages(db: None) -> None:
    agent = make_agent(make_tenant(session_messages_per_minute=2))
    for _ in range(2):
        send(agent, session_id="s")
    tasks = Task.unscoped.count()
    with pytest.raises(RateLimited) as refused:
        send(agent, session_id="s")
    assert refused.value.details["limit"] == "session"
    assert Task.unscoped.count() == tasks
    send(agent, session_id="another")
    send(agent)


def test_an_agent_may_be_asked_so_often_whichever_way(db: None) -> None:
    tenant = make_tenant(agent_requests_per_minute=3)
    agent, other = make_agent(tenant), make_agent(tenant)
    send(agent)
    send(agent, session_id="s")
    run(agent)
    for ask in (send, run):
        with pytest.raises(RateLimited) as refused:
            ask(agent)
        assert refused.value.details["limit"] == "agent"
    send(other)


def test_over_http_a_refused_question_leaves_nothing(db: None) -> None:
    agent = make_agent(make_tenant(ip_requests_per_minute=2, session_messages_per_minute=1))
    first = post(agent, session_id="s")
    assert first.status_code == 202
    assert first["RateLimit-Policy"] == '"ip";q=2;w=60, "session";q=1;w=60'
    second = post(agent, session_id="s")
    assert (second.status_code, second.json()["success"], second.json()["result"]) == (429, False, None)
    assert second.json()["error"]["details"]["limit"] == "session"
    assert int(second["Retry-After"]) >= 1
    third = post(agent, session_id="another")
    assert (third.status_code, third.json()["error"]["details"]["limit"]) == (429, "ip")
    assert Task.unscoped.filter(tenant_id=agent.tenant_id, agent_id=agent.pk).count() == 1


def test_an_answer_that_is_kept_costs_its_session_nothing(transactional_db: None) -> None:
    agent = make_agent(make_tenant(session_messages_per_minute=1))
    key = uuid.uuid4().hex
    answers = [post(agent, session_id="s", key=key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert post(agent, session_id="s", key=uuid.uuid4().hex).status_code == 429
    # What was refused may be tried again with the same key.
    assert Task.unscoped.filter(agent_id=agent.pk).count() == 1


def test_a_tier_without_limits_adds_no_word_to_valkey(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    speak = redis.connection.AbstractConnection.send_packed_command

    def listen(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        said.append(repr(command))
        return speak(self, command, *args, **kwargs)

    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", listen)
    agent = make_agent(tenant)
    said.clear()
    assert post(agent, session_id="s").status_code == 202
    words = len(said)
    assert not [word for word in said if ratelimits.ROOT in word or "backlog" in word]
    # And one with them, but for the two that are counted, none either.
    limited = make_agent(
        make_tenant(ip_requests_per_minute=600, session_messages_per_minute=60, max_waiting=5)
    )
    post(limited, session_id="first")  # Valkey may have to be given the scripts
    said.clear()
    assert post(limited, session_id="s").status_code == 202
    assert len(said) == words + 2


# --- Backlogs -----------------------------------------------------------------------------------------


@pytest.fixture
def bounded(db: None) -> Agent:
    """An agent of a tenant of which five runs may wait."""
    return make_agent(make_tenant(max_waiting=5, max_running=4))


def waits(agent: Agent, waiting: int, running: int = 0, seconds: bytes = b"") -> None:
    """What the broker has just said of the agent's tenant."""
    heard("agent", agent.tenant_id, [waiting, running, seconds])


@pytest.mark.parametrize("ask", [send, run], ids=["chat", "execution"])
def test_a_full_queue_takes_no_more(bounded: Agent, ask: Any) -> None:
    ask(bounded)
    waits(bounded, 4)
    ask(bounded)
    waits(bounded, 5, running=2, seconds=b"3.0")
    tasks = Task.unscoped.count()
    with pytest.raises(QueueFull) as refused:
        ask(bounded)
    assert refused.value.details == {"waiting": 5, "limit": 5, "retry_after": 2}
    assert refused.value.retry_after == 2  # one of them has to end: 3 s by 2
    assert Task.unscoped.count() == tasks


@pytest.mark.parametrize(
    ("waiting", "running", "seconds", "retry_after"),
    [(5, 0, b"", 8), (5, 100, b"1.0", 1), (14, 2, b"6.0", 30), (100_000, 1, b"60", 600)],
)
def test_when_to_come_back_is_measured(
    bounded: Agent, waiting: int, running: int, seconds: bytes, retry_after: int
) -> None:
    waits(bounded, waiting, running, seconds)
    with pytest.raises(QueueFull) as refused:
        check_room(bounded.tenant_id)
    assert refused.value.retry_after == retry_after


def test_over_http_a_full_queue_is_429(bounded: Agent) -> None:
    waits(bounded, 7, 1, b"2.0")
    answer = post(bounded)
    assert (answer.status_code, answer["Retry-After"]) == (429, "6")
    assert answer.json()["error"]["type"] == "QueueFull"
    with translation.override("es"):  # and nobody's language is another one afterwards
        spanish = Client().post(
            "/api/v1/chat/message",
            json.dumps({"agent_id": str(bounded.pk), "message": "Hola"}),
            content_type="application/json",
            headers={"Accept-Language": "es"},
        )
    assert spanish.json()["error"]["message"] != answer.json()["error"]["message"]


def test_a_session_alone_can_fill_it(bounded: Agent) -> None:
    """What waits behind its session's runs is in no queue yet."""
    for _ in range(5):
        send(bounded, session_id="s")
    with pytest.raises(QueueFull):
        send(bounded, session_id="s")
    send(bounded, session_id="another")


def test_a_tier_without_a_bound_has_none(tenant: Tenant) -> None:
    agent = make_agent(tenant)
    waits(agent, 1_000_000)
    send(agent)


def test_a_queue_that_has_emptied_takes_more(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(make_tenant(max_waiting=2))
    for _ in range(2):
        send(agent)  # published, and nobody works
    with pytest.raises(QueueFull):
        send(agent)
    monkeypatch.setattr(backlog, "STALE_SECONDS", 0.0)
    with pytest.raises(QueueFull):
        send(agent)
    client = valkey.client()
    client.zrem("nooble:q:agent:waiting", agent.tenant_id)
    send(agent)


# --- Estimates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waiting", "running", "seconds", "behind", "expected"),
    [
        (1, 0, b"", 0, 8.0),  # nothing measured yet
        (1, 0, b"2.5", 0, 2.5),  # it begins at once
        (1, 3, b"2.5", 0, 2.5),
        (1, 4, b"2.0", 0, 2.5),  # all four may end first
        (9, 4, b"2.0", 0, 6.5),  # nine at the pace of four, and itself
        (7, 2, b"2.0", 0, 8.0),  # fewer workers than the cap allows
        (1, 1, b"2.0", 2, 6.0),  # two of its session first
        (1, 0, b"0.001", 0, 0.1),
    ],
)
def test_how_long_an_answer_takes(
    bounded: Agent, waiting: int, running: int, seconds: bytes, behind: int, expected: float
) -> None:
    waits(bounded, waiting, running, seconds)
    assert estimated_seconds(bounded.tenant_id, behind=behind) == expected


def test_until_something_is_known_it_takes_eight_seconds(tenant: Tenant) -> None:
    assert estimated_seconds(tenant.pk) == 8.0
    assert send(make_agent(tenant)).estimated_time == 8.0


def test_the_estimate_is_of_the_queue_that_the_run_has_just_joined(transactional_db: None) -> None:
    tenant = make_tenant(max_running=2)
    agent = make_agent(tenant)
    client = valkey.client()
    client.set(f"nooble:q:agent:seconds:{tenant.pk}", "4.000")
    assert send(agent).estimated_time == 4.0
    assert send(agent).estimated_time == 8.0  # one ahead, and none runs
    client.hset("nooble:q:agent:running", tenant.pk, 2)
    try:
        assert send(agent).estimated_time == 10.0  # two ahead and one that runs, at the pace of two
    finally:
        client.hdel("nooble:q:agent:running", tenant.pk)


# --- Sockets ------------------------------------------------------------------------------------------


class Door:
    """A socket as a client at `ip` opens it."""

    def __init__(self, path: str, ip: str = SOMEBODY, protocols: tuple[str, ...] = ()) -> None:
        self.wire = WebsocketCommunicator(
            URLRouter(websocket_urlpatterns), path, subprotocols=list(protocols)
        )
        self.wire.scope["client"] = (ip, 1)

    async def first(self) -> dict[str, Any]:
        assert (await self.wire.connect(PATIENCE))[0]
        return await self.heard()

    async def heard(self) -> dict[str, Any]:
        message: dict[str, Any] = await self.wire.receive_json_from(PATIENCE)
        return message

    async def act(self, **frame: Any) -> dict[str, Any]:
        await self.wire.send_json_to(frame)
        while (message := await self.heard())["event"] != "action_result":
            pass
        data: dict[str, Any] = message["data"]
        return data

    async def leave(self) -> None:
        await self.wire.disconnect(timeout=PATIENCE)


async def meets(path: str, ip: str = SOMEBODY, protocols: tuple[str, ...] = ()) -> tuple[str, int | None]:
    """The first event's name, or its error's type with the code of the close."""
    door = Door(path, ip, protocols)
    first = await door.first()
    if first["event"] != "error":
        await door.leave()
        return first["event"], None
    closed = await door.wire.receive_output(PATIENCE)
    return first["data"]["type"], closed.get("code")


OPEN = ("connection_established", None)


@pytest.fixture
def agent(transactional_db: None) -> Iterator[Agent]:
    yield make_agent(
        make_tenant(ip_connects_per_minute=3, session_messages_per_minute=2, ip_requests_per_minute=5)
    )


def test_an_address_may_open_so_many_sockets(agent: Agent) -> None:
    async def scene() -> None:
        path = f"/ws/{agent.tenant_id}"
        assert [await meets(f"{path}/s{number}") for number in range(3)] == [OPEN] * 3
        assert await meets(f"{path}/s4") == ("RateLimited", 4429)
        assert await meets(f"/ws/tenants/{agent.tenant_id}/updates") == ("RateLimited", 4429)
        assert await meets(f"{path}/s4", ip="198.51.100.8") == OPEN

    aio.run(scene())


def test_a_message_too_many_leaves_the_socket_open(agent: Agent) -> None:
    question = {"action": "chat.send_message", "agent_id": str(agent.pk), "message": "Hello?"}

    async def scene() -> None:
        door = Door(f"/ws/{agent.tenant_id}/s")
        await door.first()
        sent = [await door.act(**question) for _ in range(3)]
        assert [result["success"] for result in sent] == [True, True, False]
        error = sent[2]["error"]
        assert (error["type"], error["details"]["limit"]) == ("RateLimited", "session")
        assert error["details"]["retry_after"] >= 1
        # The third was a request, too; and what else is asked is one.
        status = {"action": "chat.get_status", "task_id": sent[0]["result"]["task_id"]}
        asked = [await door.act(**status) for _ in range(3)]
        assert [result["success"] for result in asked] == [True, True, False]
        assert asked[2]["error"]["details"]["limit"] == "ip"
        await door.wire.send_json_to({"action": "ping"})
        assert await door.heard() == {"event": "pong"}
        await door.leave()

    aio.run(scene())
    assert Task.unscoped.filter(agent_id=agent.pk).count() == 2


FORGED = "nbk_000000000000_" + "A" * 43
PROTOCOL = "nooble.v1"


@pytest.mark.parametrize("token", ["nooble.resume.forged", f"nooble.bearer.{FORGED}", "nooble.bearer.a.b.c"])
def test_tokens_guessed_over_sockets_are_twenty_a_minute(committed_tenant: Tenant, token: str) -> None:
    async def scene() -> None:
        path = f"/ws/{committed_tenant.pk}/s"
        seen = [await meets(path, protocols=(PROTOCOL, token)) for _ in range(21)]
        assert {code for _, code in seen[:20]} == {4403}
        assert seen[20] == ("RateLimited", 4429)
        assert await meets(path) == OPEN
        assert (await meets(path, "198.51.100.8", (PROTOCOL, token)))[1] == 4403

    aio.run(scene())


def test_a_dashboards_key_and_a_services_token_are_guessed_no_oftener(committed_tenant: Tenant) -> None:
    async def scene() -> None:
        path, key = f"/ws/tenants/{committed_tenant.pk}/updates", (PROTOCOL, f"nooble.bearer.{FORGED}")
        assert {await meets(path, protocols=key) for _ in range(19)} == {("PermissionRefused", 4403)}
        for expected in (4403, 4429):
            door = Door("/ws/task_updates")
            assert (await door.wire.connect(PATIENCE))[0]
            await door.wire.send_json_to({"service_token": "guessed", "service_name": "agent_execution"})
            assert (await door.heard())["event"] == "error"
            assert (await door.wire.receive_output(PATIENCE))["code"] == expected
        assert (await meets(path, protocols=key))[1] == 4429
        with_key = (PROTOCOL, f"nooble.bearer.{key_text}")
        assert await meets(path, protocols=with_key) == OPEN

    key_text = make_key(committed_tenant)[1]
    aio.run(scene())


def test_connects_to_nobody_are_counted_by_address(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratelimits, "STRANGERS_CONNECTS", 10)

    async def scene() -> None:
        for path in ("/ws/no-such-tenant/s", "/ws/NO/s"):
            assert {(await meets(path))[1] for _ in range(5)} <= {4404, 4400}
        assert await meets("/ws/no-such-tenant/s") == ("RateLimited", 4429)
        assert (await meets("/ws/no-such-tenant/s", ip="127.0.0.1"))[1] == 4404

    aio.run(scene())


def test_the_client_behind_a_proxy_is_who_is_counted(agent: Agent, settings: Any) -> None:
    settings.TRUSTED_PROXIES = ("10.0.0.0/8",)

    async def scene() -> None:
        for number in range(5):
            door = Door(f"/ws/{agent.tenant_id}/s{number}", ip="10.0.0.1")
            door.wire.scope["headers"].append((b"x-forwarded-for", f"203.0.113.{number}".encode()))
            assert (await door.first())["event"] == "connection_established"
            await door.leave()

    aio.run(scene())
