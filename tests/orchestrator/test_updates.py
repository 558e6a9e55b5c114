"""Dashboards of a tenant, and services that tell what their work comes to; without a server."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import Permission, User
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test import Client

from agents.events import notify_agent
from agents.models import Agent
from conversations.models import Session
from core import aio, ratelimits
from core.actions.bus import execute
from core.actions.notices import NoticeRelayAction
from core.events import log
from core.events.base import SERVICES
from core.events.groups import session_name
from core.events.publisher import publish_to_tenant, publish_update
from core.models import ApiKey, Notice, Task, Tenant
from core.models.membership import Role
from core.tenancy import tenant_scope
from orchestrator import consumers
from orchestrator.events import Broadcast
from orchestrator.routing import websocket_urlpatterns
from orchestrator.sockets.census import census
from tests.factories import claim, make_agent, make_key, make_person, make_session, make_task, make_tenant

PATIENCE = 10  # seconds
SCOPES = ("agents:read",)


class Wire(WebsocketCommunicator):  # type: ignore[misc]
    """A client's socket."""

    def __init__(self, path: str, *protocols: str, **headers: str) -> None:
        super().__init__(
            URLRouter(websocket_urlpatterns),
            path,
            headers=[(name.encode(), text.encode()) for name, text in headers.items()],
            subprotocols=list(protocols),
        )

    async def heard(self) -> dict[str, Any]:
        message: dict[str, Any] = await self.receive_json_from(PATIENCE)
        return message

    async def say(self, **fields: Any) -> None:
        await self.send_to(text_data=json.dumps(fields, default=str))

    async def refused(self) -> tuple[str, int]:
        """The type of the error event, and the code of the close that follows it."""
        error = await self.heard()
        assert error["event"] == "error"
        close = await self.receive_output(PATIENCE)
        assert close["type"] == "websocket.close"
        return error["data"]["type"], close["code"]


@asynccontextmanager
async def opened(path: str, *protocols: str, **headers: str) -> AsyncIterator[Wire]:
    wire = Wire(path, *protocols, **headers)
    accepted, picked = await wire.connect(PATIENCE)
    assert accepted
    assert picked == ("nooble.v1" if "nooble.v1" in protocols else None)
    try:
        yield wire
    finally:
        await wire.disconnect(timeout=PATIENCE)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """On the loop that the channel layer and the log live on."""

    async def run() -> None:
        before = census().held
        await scenario()
        assert census().held == before

    aio.run(run())


@pytest.fixture
def key(committed_tenant: Tenant) -> str:
    return make_key(committed_tenant, SCOPES)[1]


@pytest.fixture
def agent(committed_tenant: Tenant) -> Agent:
    return make_agent(committed_tenant)


def updates(tenant: Tenant | str) -> str:
    return f"/ws/tenants/{tenant if isinstance(tenant, str) else tenant.pk}/updates"


def bearer(key: str) -> tuple[str, str]:
    return "nooble.v1", f"nooble.bearer.{key}"


def change(agent: Agent, *changes: str) -> None:
    """A change of the agent, told as a worker tells it."""
    with tenant_scope(agent.tenant_id):
        with transaction.atomic():
            notify_agent("agent_updated", agent, changes)
        execute(NoticeRelayAction(subject=str(agent.pk)))


# --- Dashboards ------------------------------------------------------------------------------------


def test_a_dashboard_hears_what_happens_to_its_tenant(
    committed_tenant: Tenant, agent: Agent, key: str
) -> None:
    other = make_agent(make_tenant())

    async def scenario() -> None:
        async with opened(updates(committed_tenant), *bearer(key)) as wire:
            channel = f"tenant:{committed_tenant.pk}"
            assert await wire.heard() == {"event": "connection_established", "data": {"channel": channel}}
            for subject in (other, agent):
                await asyncio.to_thread(in_thread, change, subject, "name")
            message = await wire.heard()
            assert message == {
                "channel": channel,
                "event": "agent_updated",
                "data": {
                    "agent_id": str(agent.pk),
                    "agent_name": agent.name,
                    "agent_type": agent.type,
                    "version": "1.0",
                    "changes": ["name"],
                },
            }
            # What its public sockets hear is not for dashboards, nor the other way round.
            await publish_to_tenant(broadcast(committed_tenant))
            await wire.say(action="ping")
            assert await wire.heard() == {"event": "pong"}
            await wire.say(action="chat.send_message")
            assert (await wire.heard())["event"] == "error"
            await wire.send_to(text_data="no JSON")
            assert (await wire.heard())["data"]["type"] == "MalformedRequest"

    play(scenario)


def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """For threads that borrow a connection."""
    try:
        return function(*args)
    finally:
        connection.close()


def broadcast(tenant: Tenant) -> Broadcast:
    return Broadcast(
        event="note", task_id=None, global_task_id=None, tenant_id=tenant.pk, session_id=None, data={}
    )


def test_public_sockets_hear_nothing_of_it(committed_tenant: Tenant, agent: Agent) -> None:
    async def scenario() -> None:
        async with opened(f"/ws/{committed_tenant.pk}/some-session") as wire:
            assert (await wire.heard())["event"] == "connection_established"
            await publish_update(committed_tenant.pk, {"event": "agent_updated", "data": {}})
            await publish_to_tenant(broadcast(committed_tenant))
            assert (await wire.heard())["event"] == "note"

    play(scenario)


def test_the_second_name_of_a_fact_says_so(committed_tenant: Tenant, key: str) -> None:
    async def scenario() -> None:
        async with opened(updates(committed_tenant), *bearer(key)) as wire:
            await wire.heard()
            body = {"event": "validation_complete", "alias_of": "agent_validated", "data": {}, "seq": None}
            await publish_update(committed_tenant.pk, body)
            message = await wire.heard()
            assert message.keys() == {"channel", "event", "data", "alias_of"}
            assert message["alias_of"] == "agent_validated"

    play(scenario)


def test_who_may_not_look_is_refused(committed_tenant: Tenant, key: str) -> None:
    weak = make_key(committed_tenant, ("chat:read", "agents:write"))[1]
    revoked, text = make_key(committed_tenant, SCOPES)
    ApiKey.unscoped.filter(pk=revoked.pk).update(revoked_at=Now())
    foreign = make_key(make_tenant(), SCOPES)[1]
    here = updates(committed_tenant)
    cases: list[tuple[str, tuple[str, ...], tuple[str, int]]] = [
        (here, (), ("PermissionRefused", 4403)),
        (here, ("nooble.v1",), ("PermissionRefused", 4403)),
        (here, bearer("nbk_000000000000_" + "x" * 43), ("PermissionRefused", 4403)),
        (here, bearer(""), ("PermissionRefused", 4403)),
        (here, bearer(text), ("PermissionRefused", 4403)),
        (here, bearer(weak), ("PermissionRefused", 4403)),
        (here, bearer(key)[1:], ("ValidationFailed", 4400)),
        # A tenant that is another's answers as one that does not exist.
        (here, bearer(foreign), ("TenantNotFound", 4404)),
        (updates("nobody"), bearer(foreign), ("TenantNotFound", 4404)),
        (updates("nobody"), ("nooble.v1",), ("PermissionRefused", 4403)),
        (updates("NOBODY"), bearer(key), ("ValidationFailed", 4400)),
    ]

    async def scenario() -> None:
        for path, protocols, expected in cases:
            async with opened(path, *protocols) as wire:
                assert await wire.refused() == expected, (path, protocols)

    play(scenario)


def cookie_of(user: User) -> str:
    client = Client()
    client.force_login(user)
    return f"sessionid={client.cookies['sessionid'].value}"


def test_people_of_the_console_look_at_their_tenants(committed_tenant: Tenant, agent: Agent) -> None:
    looks = Permission.objects.get(codename="view_agent")
    admin = User.objects.create_superuser("admin")
    viewer = make_person((committed_tenant, Role.VIEWER), name="viewer")
    nobody = make_person(name="nobody")
    nobody.user_permissions.add(looks)
    elsewhere = make_person((make_tenant(), Role.OWNER), name="elsewhere")
    outsider = make_person((committed_tenant, Role.OWNER), name="outsider")
    User.objects.filter(username="outsider").update(is_staff=False)
    cookies = {user.username: cookie_of(user) for user in (admin, viewer, nobody, elsewhere, outsider)}
    gone = cookie_of(User.objects.create_superuser("gone"))
    User.objects.filter(username="gone").update(is_active=False)

    async def scenario() -> None:
        here = {"host": "console.example.com", "origin": "https://console.example.com"}
        for name in ("admin", "viewer"):
            async with opened(updates(committed_tenant), **here, cookie=cookies[name]) as wire:
                assert (await wire.heard())["event"] == "connection_established"
                await asyncio.to_thread(in_thread, change, agent)
                assert (await wire.heard())["event"] == "agent_updated"
        strangers = [cookies[name] for name in ("nobody", "elsewhere", "outsider")]
        for cookie in (*strangers, gone, "sessionid=nonsense", "sessionid="):
            async with opened(updates(committed_tenant), **here, cookie=cookie) as wire:
                assert await wire.refused() == ("PermissionRefused", 4403)
        async with opened(updates("nobody"), **here, cookie=cookies["admin"]) as wire:
            assert await wire.refused() == ("TenantNotFound", 4404)
        # Another site's page cannot use the person's cookie.
        for origin in ("https://evil.example.com", "https://console.example.com:8443"):
            headers = {**here, "origin": origin, "cookie": cookies["admin"]}
            async with opened(updates(committed_tenant), **headers) as wire:
                assert await wire.refused() == ("PermissionRefused", 4403)

    play(scenario)


def test_a_right_that_is_taken_away_ends_what_it_opened(
    committed_tenant: Tenant, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "CHECK_SECONDS", 0.0)

    def revoke() -> None:
        ApiKey.unscoped.update(revoked_at=Now())

    async def scenario() -> None:
        async with opened(updates(committed_tenant), *bearer(key)) as wire:
            await wire.heard()
            await publish_update(committed_tenant.pk, {"event": "first", "data": {}})
            assert (await wire.heard())["event"] == "first"
            await asyncio.to_thread(in_thread, revoke)
            await publish_update(committed_tenant.pk, {"event": "second", "data": {}})
            assert await wire.refused() == ("PermissionRefused", 4403)

    play(scenario)


def test_dashboards_count_as_sockets(committed_tenant: Tenant, key: str, settings: Any) -> None:
    settings.MAX_WEBSOCKET_CONNECTIONS = 1

    async def scenario() -> None:
        async with opened(updates(committed_tenant), *bearer(key)) as wire:
            await wire.heard()
            async with opened(updates(committed_tenant), *bearer(key)) as second:
                assert await second.refused() == ("TooManyConnections", 4429)
            async with opened("/ws/task_updates") as third:
                assert await third.refused() == ("TooManyConnections", 4429)

    play(scenario)


# --- Services --------------------------------------------------------------------------------------

TOKEN = "only-for-tests-service-token"


@asynccontextmanager
async def service(name: str = "agent-execution") -> AsyncIterator[Wire]:
    async with opened("/ws/task_updates") as wire:
        await wire.say(service_token=TOKEN, service_name=name)
        assert await wire.heard() == {"status": "authenticated"}
        yield wire


def envelope(task: Task, event: str, data: Any, **fields: Any) -> dict[str, Any]:
    return {
        "event": event,
        "service": "agent-execution",
        "task_id": task.pk,
        "global_task_id": None,
        "tenant_id": task.tenant_id,
        "timestamp": "2026-11-20T12:00:00.000001",
        "data": data,
        **fields,
    }


@pytest.fixture
def session(agent: Agent) -> Session:
    return make_session(agent)


@pytest.fixture
def task(session: Session) -> Task:
    """A run that is under way."""
    made = make_task(Tenant.objects.get(pk=session.tenant_id), session_id=session.key)
    return claim(made)


async def told(session: Session) -> list[dict[str, Any]]:
    """What the session's log holds."""
    return [json.loads(body) for _, body in await log.read(session_name(session.tenant_id, session.key), 0)]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_name_of_a_service_is_known(committed_tenant: Tenant, name: str) -> None:
    async def scenario() -> None:
        async with service(name) as wire:
            await wire.say(action="ping")
            assert await wire.heard() == {"event": "pong"}

    play(scenario)


@pytest.mark.parametrize(
    "said",
    [
        {"service_token": "another-token-than-ours", "service_name": "agent-execution"},
        {"service_token": TOKEN, "service_name": "somebody"},
        {"service_token": TOKEN},
        {"service_token": None, "service_name": "agent-execution"},
        {"service_token": "", "service_name": "agent-execution"},
        {"service_token": "ñ", "service_name": "agent-execution"},
        {"service_token": [TOKEN], "service_name": {"a": 1}},
        {"action": "ping"},
        {"event": "agent_execution_progress", "data": {}},
        {},
    ],
)
def test_who_is_no_service_is_refused(committed_tenant: Tenant, said: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with opened("/ws/task_updates") as wire:
            await wire.say(**said)
            assert await wire.refused() == ("ServiceRefused", 4403)

    play(scenario)


def test_guesses_of_the_service_token_are_counted_and_nothing_else(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratelimits, "REFUSED_TOKENS", 1)
    address = f"2001:db8:{uuid.uuid4().hex[:4]}:{uuid.uuid4().hex[:4]}::1"

    nothing: dict[str, str] = {}
    guess = {"service_token": "x"}

    async def scenario() -> None:
        for said, code in ((nothing, 4403), (nothing, 4403), (guess, 4403), (guess, 4429)):
            wire = Wire("/ws/task_updates")
            wire.scope["client"] = [address, 1]
            await wire.connect(PATIENCE)
            await wire.say(**said)
            assert (await wire.refused())[1] == code
            await wire.disconnect(timeout=PATIENCE)

    play(scenario)


@pytest.mark.parametrize("token", ["", TOKEN])
def test_without_a_service_token_there_are_no_services(
    committed_tenant: Tenant, settings: Any, token: str
) -> None:
    settings.SERVICE_TOKEN = ""

    async def scenario() -> None:
        async with opened("/ws/task_updates") as wire:
            await wire.say(service_token=token, service_name="agent-execution")
            assert await wire.refused() == ("ServiceRefused", 4403)

    play(scenario)


def test_who_does_not_say_who_it_is_is_refused(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "HANDSHAKE_SECONDS", 0.05)

    async def scenario() -> None:
        async with opened("/ws/task_updates") as wire:
            assert await wire.refused() == ("ServiceRefused", 4403)

    play(scenario)


def test_progress_and_tokens_reach_the_session(task: Task, session: Session) -> None:
    async def scenario() -> None:
        async with opened(f"/ws/{task.tenant_id}/{session.key}") as client, service() as wire:
            await client.heard()
            await wire.say(**envelope(task, "agent_execution_progress", {"stage": "thinking", "percent": 5}))
            for token, final in (("a ñ", False), (" b", True)):
                await wire.say(**envelope(task, "agent_response_token", {"token": token, "is_final": final}))
            progress, first, second = [await client.heard() for _ in range(3)]
            assert progress["data"] == {"stage": "thinking", "percent": 5}
            assert first["data"] == {"token": "a ñ", "offset": 0, "is_final": False}
            assert second["data"] == {"token": " b", "offset": 3, "is_final": True}
            assert [event["seq"] for event in (progress, first, second)] == [1, 2, 3]
            assert progress["service"] == "agent-execution"
            assert progress["session_id"] == session.key
            assert progress["timestamp"] == "2026-11-20T12:00:00.000001"
            # Who gives an id is answered; who gives none hears only of what is refused.
            event_id = uuid.uuid4()
            said = envelope(task, "agent_execution_progress", {}, event_id=event_id)
            await wire.say(**said)
            answer = await wire.heard()
            assert (answer["event"], answer["data"]["success"]) == ("action_result", True)
            assert answer["data"]["action_id"] == str(event_id)
            # Sent once more, because the answer was lost.
            await wire.say(**said)
            assert (await wire.heard())["data"]["success"]
            assert len(events := await told(session)) == 4
            assert events[-1]["data"] == {"stage": ""}
            running, _ = await log.running_answer(session_name(task.tenant_id, session.key))
            assert running is not None and running.text == "a ñ b"

    play(scenario)


def test_what_comes_too_late_is_refused(task: Task, session: Session) -> None:
    async def refusals(wire: Wire, *said: dict[str, Any]) -> list[str]:
        for frame in said:
            await wire.say(**frame)
        return [(await wire.heard())["data"]["type"] for _ in said]

    def settle() -> None:
        task.settle("failed", error={"type": "Odd", "message": "It was odd.", "details": {}})

    async def scenario() -> None:
        started = {"agent_id": uuid.uuid4(), "version": 1, "attempt": 2}
        failed = {"error": "It was odd.", "error_type": "Odd"}
        async with service() as wire:
            early = envelope(task, "task_failed", failed)
            assert await refusals(
                wire,
                envelope(task, "agent_execution_started", started),
                envelope(task, "agent_response_token", {"token": "x", "offset": 7}),
                early,
                envelope(task, "task_status_update", {"status": "cancelled", "details": {}}),
            ) == ["EventRefused", "EventRefused", "TaskIsOpen", "TaskIsOpen"]
            await asyncio.to_thread(in_thread, settle)
            # The end is the row's, told once, whoever says it.
            for _ in range(2):
                await wire.say(**early, event_id=uuid.uuid4())
                assert (await wire.heard())["data"]["success"]
            assert await refusals(wire, envelope(task, "agent_response_token", {"token": "x"})) == [
                "EventRefused"
            ]
        assert [event["event"] for event in await told(session)] == ["agent_execution_failed", "task_failed"]

    play(scenario)


def test_what_does_not_fit_the_schema_is_refused(task: Task, session: Session) -> None:
    fits = envelope(task, "agent_execution_progress", {})
    foreign = make_task(make_tenant(), session_id="s")
    cases: list[tuple[dict[str, Any], str]] = [
        ({**fits, "event": "Agent Exploded"}, "event"),
        ({**fits, "event": "agent_exploded"}, "event"),
        ({**fits, "service": "somebody"}, "service"),
        ({**fits, "service": "agent-management"}, "service"),
        ({**fits, "task_id": "none"}, "task_id"),
        ({**fits, "tenant_id": "NOBODY"}, "tenant_id"),
        ({**fits, "timestamp": "yesterday"}, "timestamp"),
        ({**fits, "data": "text"}, "data"),
        ({**fits, "more": 1}, "more"),
        ({name: fits[name] for name in fits if name != "tenant_id"}, "tenant_id"),
        ({name: fits[name] for name in fits if name != "timestamp"}, "timestamp"),
        ({**fits, "event": "agent_response_token", "data": {"is_final": True}}, "data.token"),
        ({**fits, "event": "agent_execution_started", "data": {"attempt": 1}}, "data.agent_id"),
        ({**fits, "event": "task_failed", "data": {}}, "data.error"),
        ({**fits, "data": {"stage": 5}}, "data.stage"),
        ({"channel": f"tenant:{task.tenant_id}", "event": "agent_created", "data": {}}, "channel"),
    ]
    unknown: list[dict[str, Any]] = [
        {**fits, "task_id": None},
        {**fits, "task_id": uuid.uuid4()},
        {**fits, "task_id": foreign.pk},
        {**fits, "tenant_id": foreign.tenant_id},
        {**fits, "tenant_id": "nobody"},
        {**fits, "session_id": "another"},
    ]

    async def scenario() -> None:
        async with service() as wire:
            for said, field in cases:
                await wire.say(**said)
                error = await wire.heard()
                assert (error["event"], error["data"]["type"]) == ("error", "ValidationFailed"), said
                assert field in error["data"]["details"], (said, error)
            for said in unknown:
                await wire.say(**said)
                assert (await wire.heard())["data"]["type"] == "TaskNotFound", said
        assert await told_or_nothing(session) == []

    play(scenario)


async def told_or_nothing(session: Session) -> list[dict[str, Any]]:
    try:
        return await told(session)
    except log.Hole:
        return []


def test_what_a_service_tells_of_agents_goes_the_way_of_our_own_notices(
    committed_tenant: Tenant, key: str, agent: Agent
) -> None:
    event_id = uuid.uuid4()
    created = {
        "event": "agent_created",
        "service": "agent-management-service",
        "event_id": event_id,
        "task_id": uuid.uuid4(),
        "tenant_id": committed_tenant.pk,
        "timestamp": "2026-11-20T12:00:00Z",
        "data": {"agent_id": agent.pk, "agent_name": "Ada", "agent_type": "assistant"},
    }
    validated = {
        **created,
        "event": "validation_complete",
        "event_id": uuid.uuid4(),
        "data": {"agent_id": agent.pk, "agent_name": "Ada", "valid": True},
    }

    async def scenario() -> None:
        async with service("agent-management") as wire:
            for said in (created, created, validated):
                await wire.say(**said)
                assert (await wire.heard())["data"]["success"]
            for said in ({**created, "tenant_id": "nobody"}, {**created, "data": {}}):
                await wire.say(**said)
                assert not (await wire.heard())["data"]["success"]

    play(scenario)
    notices = Notice.unscoped.order_by("pk")
    assert [(notice.event, notice.subject) for notice in notices] == [
        ("agent_created", str(agent.pk)),
        ("agent_validated", str(agent.pk)),
        ("validation_complete", str(agent.pk)),
    ]
    assert notices[0].event_id == event_id
    assert notices[0].body["service"] == "agent-management"
    assert notices[2].body["alias_of"] == "agent_validated"
    assert {task.action for task in Task.unscoped.all()} == {"notice.relay"}


def test_the_end_of_a_task_without_a_session_is_told_to_the_tenant(committed_tenant: Tenant) -> None:
    task = make_task(committed_tenant)

    async def scenario() -> None:
        async with service() as wire:
            await wire.say(**envelope(task, "task_failed", {"error": "It was odd."}, event_id=uuid.uuid4()))
            assert (await wire.heard())["data"]["success"]

    play(scenario)
    body = Notice.unscoped.get().body
    assert (body["event"], body["data"]) == (
        "task_failed",
        {"error": "It was odd.", "error_type": "Unknown"},
    )
