"""Who may chat with an agent, and hear its sessions: keys, end users' tokens, origins, resume tokens."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from agents.actions import AgentDeleteAction, AgentUpdateAction
from agents.models import Agent
from conversations.models import Message, Session
from core import aio
from core.actions.bus import execute
from core.actions.end_users import EndUserSecretRevokeAction
from core.actions.keys import ApiKeyRevokeAction
from core.events import log
from core.events.groups import session_name
from core.models import Task, Tenant
from core.tenancy import tenant_scope
from orchestrator import admission, consumers
from orchestrator.access import Resume
from orchestrator.actions import ChatSendMessageAction
from orchestrator.admission import Listener, Visitor, verdicts, visited_by
from orchestrator.end_users import EndUser
from orchestrator.errors import ProofRequired
from orchestrator.events import Broadcast
from orchestrator.routing import websocket_urlpatterns
from orchestrator.sockets import keeper as keepers
from tests.conftest import forget_cached_rows
from tests.factories import make_agent, make_key, make_message, make_secret, make_session, make_tenant, sign

PATIENCE = 10  # seconds
GOOD = "https://good.com"
EVIL = [
    "null",
    "https://evil.com",
    "https://good.com.evil",
    "https://good.com.evil.com",
    "https://evilgood.com",
    "https://good.com:8443",
    "http://good.com",
    "https://sub.good.com",
    "https://good.com@evil.com",
    "https://GOOD.com",
    "https://good.com/",
]


def post(agent: Agent, path: str = "/api/v1/chat/message", headers: Any = None, **fields: Any) -> Any:
    body = {"agent_id": str(agent.pk), "message": "Hello", **fields}
    return Client().post(path, json.dumps(body), content_type="application/json", headers=headers or {})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def accepted(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 202, answer.content
    result: dict[str, Any] = answer.json()["result"]
    return result


def refused(answer: Any, status: int = 403) -> tuple[str, dict[str, Any]]:
    """The error's type and details."""
    assert answer.status_code == status, answer.content
    error = answer.json()["error"]
    return error["type"], error["details"]


def rows() -> tuple[int, int, int]:
    return Session.unscoped.count(), Message.unscoped.count(), Task.unscoped.count()


# --- Over HTTP ---------------------------------------------------------------------------------------

PATHS = ["/api/v1/chat/message", "/api/chat/send"]


@pytest.mark.parametrize("path", PATHS)
def test_a_signed_agent_takes_its_tenants_tokens_only(committed_tenant: Tenant, path: str) -> None:
    agent = make_agent(committed_tenant, access="signed")
    secret = make_secret(committed_tenant)
    before = rows()
    assert refused(post(agent, path)) == (
        "ProofRequired",
        {"access": "signed", "header": "Authorization: Bearer <end-user token>"},
    )
    for token, reason in (
        (sign(secret, "ada", exp=int(time.time()) - 61), "exp"),
        (sign(make_secret(make_tenant()), "ada"), "signature"),
        (sign(secret + "x", "ada"), "signature"),
        ("a.b.c", "malformed"),
    ):
        told = refused(post(agent, path, bearer(token)), 401)
        assert told == ("EndUserTokenRefused", {"end_user_token": reason})
    assert refused(post(agent, path, bearer("nonsense")), 401)[0] == "AuthenticationRequired"
    assert refused(post(agent, path, bearer("nbk_000000000000_" + "x" * 43)), 401)
    assert rows() == before
    accepted(post(agent, path, bearer(sign(secret, "ada"))))


def test_the_token_says_who_speaks(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, access="signed")
    token = bearer(sign(make_secret(committed_tenant), "ada"))
    sent = accepted(post(agent, headers=token, user_info={"name": "Ada"}))
    session = Session.unscoped.get(key=sent["session_id"])
    assert session.user_id == "ada"
    assert Task.unscoped.get(pk=sent["task_id"]).payload["end_user"] == "ada"
    accepted(post(agent, headers=token, user_info={"user_id": "ada"}))
    other = post(agent, headers=token, user_info={"user_id": "grace"})
    assert refused(other) == ("PermissionRefused", {"user_info.user_id": "the token names another one"})


def test_a_public_agent_believes_a_token_too(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    secret = make_secret(committed_tenant)
    sent = accepted(post(agent, headers=bearer(sign(secret, "ada"))))
    assert Session.unscoped.get(key=sent["session_id"]).user_id == "ada"
    refused(post(agent, headers=bearer(sign(secret, "ada", exp=1))), 401)
    refused(post(agent, headers=bearer(sign(secret, "ada")), user_info={"user_id": "grace"}))


def test_a_token_for_one_agent_or_one_session_is_for_no_other(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, access="signed")
    other = make_agent(committed_tenant, access="signed")
    secret = make_secret(committed_tenant)
    for_agent = bearer(sign(secret, "ada", aud=[str(agent.pk)]))
    accepted(post(agent, headers=for_agent))
    assert refused(post(other, headers=for_agent)) == ("PermissionRefused", {"end_user_token": "aud"})
    for_session = bearer(sign(secret, "ada", session_id="s-mine"))
    accepted(post(agent, headers=for_session, session_id="s-mine"))
    for fields in ({"session_id": "s-other"}, {}):
        told = refused(post(agent, headers=for_session, **fields))
        assert told == ("PermissionRefused", {"end_user_token": "session_id"})


def test_a_signed_session_is_its_users_own(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, access="signed")
    secret = make_secret(committed_tenant)
    sent = accepted(post(agent, headers=bearer(sign(secret, "ada")), session_id="s-ada"))
    accepted(post(agent, headers=bearer(sign(secret, "ada")), session_id="s-ada"))
    before = rows()
    headers = bearer(sign(secret, "grace")) | {"Nooble-Resume": sent["resume_token"]}
    told = refused(post(agent, headers=headers, session_id="s-ada"))
    assert told == ("PermissionRefused", {"session_id": "another end user's session"})
    assert rows() == before


@pytest.mark.parametrize("access", ["signed", "key"])
def test_the_tenants_own_key_opens_it(committed_tenant: Tenant, access: str) -> None:
    agent = make_agent(committed_tenant, access=access)
    _, key = make_key(committed_tenant, ("chat:write",))
    sent = accepted(post(agent, headers=bearer(key), user_info={"user_id": "ada"}, session_id="s-1"))
    assert Session.unscoped.get(key=sent["session_id"]).user_id == "ada"
    accepted(post(agent, headers=bearer(key), session_id="s-1"))
    _, reader = make_key(committed_tenant, ("chat:read", "agents:write"))
    assert refused(post(agent, headers=bearer(reader))) == ("PermissionRefused", {"scope": "chat:write"})
    _, foreign = make_key(make_tenant())
    assert refused(post(agent, headers=bearer(foreign)))[0] == "ProofRequired"


def test_a_key_agent_takes_nothing_else(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, access="key")
    needed = {"access": "key", "header": "Authorization: Bearer <tenant API key>"}
    assert refused(post(agent)) == ("ProofRequired", needed)
    token = sign(make_secret(committed_tenant), "ada")
    assert refused(post(agent, headers=bearer(token))) == ("ProofRequired", needed)


@pytest.mark.parametrize("origin", EVIL)
def test_other_pages_are_refused(committed_tenant: Tenant, origin: str) -> None:
    agent = make_agent(committed_tenant, allowed_origins=[GOOD])
    before = rows()
    assert refused(post(agent, headers={"Origin": origin}))[0] == "OriginRefused"
    assert rows() == before


def test_an_allowed_page_and_what_is_no_browser_pass(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, allowed_origins=[GOOD])
    accepted(post(agent, headers={"Origin": GOOD}))
    accepted(post(agent))
    everybody = make_agent(committed_tenant)
    accepted(post(everybody, headers={"Origin": "https://anything.example"}))
    assert refused(post(everybody, headers={"Origin": "null"}))[0] == "OriginRefused"


def test_browsers_may_ask_before_they_ask(committed_tenant: Tenant) -> None:
    """A preflight knows no agent: it is allowed to every page, and the message is not."""
    answer = Client().options(
        "/api/v1/chat/message",
        headers={
            "Origin": "https://evil.com",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,nooble-resume,idempotency-key,last-event-id",
        },
    )
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    allowed = answer.headers["Access-Control-Allow-Headers"]
    assert {"authorization", "nooble-resume", "idempotency-key", "last-event-id"} <= {
        word.strip() for word in allowed.split(",")
    }
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_session_that_needs_its_token(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, require_resume_token=True)
    sent = accepted(post(agent, session_id="s-1"))
    before = rows()
    needed = ("ProofRequired", {"header": "Nooble-Resume: <resume_token>"})
    others = Resume(committed_tenant.pk, "s-2", 0).token()
    foreign = Resume("other", "s-1", 0).token()
    for headers in ({}, *({"Nooble-Resume": token} for token in ("", "nonsense", others, foreign))):
        assert refused(post(agent, headers=headers, session_id="s-1")) == needed
    assert rows() == before
    accepted(post(agent, headers={"Nooble-Resume": sent["resume_token"]}, session_id="s-1"))
    _, key = make_key(committed_tenant, ("chat:write",))
    accepted(post(agent, headers=bearer(key), session_id="s-1"))


def test_a_session_without_messages_needs_no_token_yet(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, require_resume_token=True)
    make_session(agent, "s-1")
    accepted(post(agent, session_id="s-1"))
    refused(post(agent, session_id="s-1"))


def test_of_two_first_messages_at_once_one_begins_the_session(committed_tenant: Tenant) -> None:
    """The other one finds a session that has a message, and shows no token for it."""
    agent = make_agent(committed_tenant, require_resume_token=True)
    make_session(agent, "s-made")
    for session_id in ("s-new", "s-made"):
        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(_post_and_close, agent, session_id) for _ in range(4)]
            assert sorted(answer.result() for answer in asked) == [202, 403, 403, 403]


def _post_and_close(agent: Agent, session_id: str) -> int:
    try:
        return int(post(agent, session_id=session_id).status_code)
    finally:
        connection.close()


def test_of_two_users_first_messages_at_once_one_begins_the_session(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, access="signed")
    secret = make_secret(committed_tenant)

    def ask(user: str) -> int:
        try:
            return int(post(agent, headers=bearer(sign(secret, user)), session_id="s-1").status_code)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(ask, ["ada", "grace", "edsger", "barbara"])) == [202, 403, 403, 403]


def test_a_kept_answer_is_only_for_whose_it_is(committed_tenant: Tenant) -> None:
    """The answer to a message holds capabilities: another user with the same key does not get it."""
    agent = make_agent(committed_tenant, access="signed")
    secret = make_secret(committed_tenant)
    once = {"Idempotency-Key": "k" * 22}
    first = accepted(post(agent, headers=bearer(sign(secret, "ada")) | once))
    assert accepted(post(agent, headers=bearer(sign(secret, "ada")) | once)) == first
    assert accepted(post(agent, headers=bearer(sign(secret, "grace")) | once)) != first
    refused(post(agent, headers=once))


@pytest.mark.parametrize("who", ["nobody", "another tenant's scope"])
def test_what_came_through_no_door_shows_nothing(committed_tenant: Tenant, who: str) -> None:
    agent = make_agent(committed_tenant, access="signed")
    action = ChatSendMessageAction(agent_id=agent.pk, message="Hello")
    stranger = make_tenant()
    user = EndUser.of(sign(make_secret(stranger), "ada"), stranger.pk)
    visitor = Visitor() if who == "nobody" else Visitor(user=user)
    with tenant_scope(committed_tenant.pk), visited_by(visitor), pytest.raises(ProofRequired):
        execute(action)


def test_the_past_needs_what_the_present_needs(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, access="signed", allowed_origins=[GOOD])
    secret = make_secret(committed_tenant)
    ada = bearer(sign(secret, "ada"))
    sent = accepted(post(agent, headers=ada, session_id="s-1"))
    resume = {"Nooble-Resume": sent["resume_token"]}

    def read(**headers: str) -> Any:
        return Client().get("/api/v1/sessions/s-1/messages", headers=headers)

    [item] = read(**ada, **resume).json()["items"]
    assert item["text"] == "Hello"
    assert read(**ada, **resume, Origin=GOOD).status_code == 200
    assert refused(read(**resume))[0] == "ProofRequired"
    assert refused(read(**ada))[1] == {"header": "Nooble-Resume"}
    assert refused(read(**ada, **resume, Origin="https://evil.com"))[0] == "OriginRefused"
    assert refused(read(**bearer(sign(secret, "grace")), **resume))[0] == "PermissionRefused"
    assert refused(read(**bearer(sign(secret, "ada", exp=1)), **resume), 401)[0] == "EndUserTokenRefused"


def test_a_tasks_id_is_enough_for_the_task(committed_tenant: Tenant) -> None:
    """A front end may send its token with everything: where the id is enough it is not looked at."""
    agent = make_agent(committed_tenant, access="signed")
    secret = make_secret(committed_tenant)
    task = accepted(post(agent, headers=bearer(sign(secret, "ada"))))["task_id"]
    for headers in ({}, bearer(sign(secret, "ada", exp=1))):
        assert Client().get(f"/api/v1/chat/status/{task}", headers=headers).status_code == 200
    path, headers = f"/api/v1/chat/cancel/{task}", bearer(sign(secret, "ada"))
    cancel = Client().post(path, content_type="application/json", headers=headers)
    assert cancel.status_code == 200


def test_management_takes_no_end_users_token(tenant: Tenant) -> None:
    token = sign(make_secret(tenant), "ada")
    for path in ("/api/v1/agents", "/api/v1/end-user-secrets", "/api/v1/sessions", "/api/v1/webhooks"):
        assert Client().get(path, headers=bearer(token)).status_code == 401


def test_who_is_open_to_all_costs_no_query(committed_tenant: Tenant) -> None:
    """A message to a public agent asks the same, whatever the tenant's other agents are like."""

    def queries(agent: Agent) -> int:
        accepted(post(agent, headers={"Origin": GOOD}))
        with CaptureQueriesContext(connection) as captured:
            accepted(post(agent, headers={"Origin": GOOD}))
        return len(captured)

    public = make_agent(committed_tenant)
    alone = queries(public)
    make_agent(committed_tenant, access="signed")
    forget_cached_rows()
    assert queries(public) == alone
    origins = make_agent(committed_tenant, allowed_origins=[GOOD])
    assert queries(origins) == alone


# --- Sockets -----------------------------------------------------------------------------------------


class Joins:
    """Which groups sockets have joined."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[str] = []
        layer = get_channel_layer()
        add = layer.group_add

        async def group_add(group: str, channel: str) -> None:
            self.groups.append(group)
            await add(group, channel)

        monkeypatch.setattr(layer, "group_add", group_add)

    def of(self, tenant: Tenant, session_id: str) -> int:
        return self.groups.count(session_name(tenant.pk, session_id))


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> Joins:
    return Joins(monkeypatch)


def wire_to(
    tenant: Tenant,
    session_id: str,
    *,
    token: str | None = None,
    resume: str | None = None,
    after: int | None = None,
    origin: str | None = None,
) -> WebsocketCommunicator:
    protocols = ["nooble.v1"]
    protocols += [f"nooble.bearer.{token}"] if token is not None else []
    protocols += [f"nooble.resume.{resume}"] if resume is not None else []
    query = "" if after is None else f"?after={after}"
    return WebsocketCommunicator(
        URLRouter(websocket_urlpatterns),
        f"/ws/{tenant.pk}/{session_id}{query}",
        headers=[(b"origin", origin.encode())] if origin is not None else [],
        subprotocols=protocols,
    )


@asynccontextmanager
async def opened(tenant: Tenant, session_id: str, **options: Any) -> AsyncIterator[WebsocketCommunicator]:
    wire = wire_to(tenant, session_id, **options)
    assert (await wire.connect(PATIENCE))[0]
    hello = await wire.receive_json_from(PATIENCE)
    assert hello["event"] == "connection_established", hello
    wire.resume = hello["data"]["resume_token"]
    try:
        yield wire
    finally:
        await wire.disconnect(timeout=PATIENCE)


async def refusal(wire: WebsocketCommunicator) -> tuple[str, int]:
    """The type of the error event and the code of the close that follows it; no other event comes before."""
    event = await wire.receive_json_from(PATIENCE)
    assert event["event"] == "error", event
    closed = await wire.receive_output(PATIENCE)
    assert closed["type"] == "websocket.close"
    return event["data"]["type"], closed["code"]


async def turned_down(tenant: Tenant, session_id: str, **options: Any) -> tuple[str, int]:
    wire = wire_to(tenant, session_id, **options)
    assert (await wire.connect(PATIENCE))[0]
    told = await refusal(wire)
    await wire.disconnect(timeout=PATIENCE)
    return told


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    aio.run(scenario())


async def act(wire: WebsocketCommunicator, **fields: Any) -> dict[str, Any]:
    """The ActionResult of a client's action, whatever is heard before it."""
    await wire.send_json_to(fields)
    while (message := await wire.receive_json_from(PATIENCE))["event"] != "action_result":
        pass
    data: dict[str, Any] = message["data"]
    return data


async def tell(tenant: Tenant, session_id: str) -> None:
    """Something happens in the session."""
    event = Broadcast(
        event="note",
        task_id=None,
        global_task_id=None,
        tenant_id=tenant.pk,
        session_id=session_id,
        data={},
    )
    await log.append(event, floor=0)


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
    def call() -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            connection.close()

    return asyncio.to_thread(call)


def session_of(agent: Agent, user_id: str = "") -> str:
    """A session that has a message."""
    session = make_session(agent)
    Session.unscoped.filter(pk=session.pk).update(user_id=user_id)
    make_message(session, "user", "Hello")
    key: str = session.key
    return key


def test_a_signed_session_is_heard_by_its_user_only(committed_tenant: Tenant, joins: Joins) -> None:
    agent = make_agent(committed_tenant, access="signed")
    session_id = session_of(agent, "ada")
    secret = make_secret(committed_tenant)
    resume = Resume(committed_tenant.pk, session_id, 0).token()

    async def scenario() -> None:
        for token, kind in (
            (None, "ProofRequired"),
            (sign(secret, "ada", exp=int(time.time()) - 61), "EndUserTokenRefused"),
            (sign(make_secret_elsewhere, "ada"), "EndUserTokenRefused"),
            (sign(secret, "ada", session_id="s-other"), "PermissionRefused"),
            (sign(secret, "ada", aud="another agent"), "PermissionRefused"),
            (sign(secret, "grace"), "PermissionRefused"),
            ("nbk_000000000000_" + "x" * 43, "AuthenticationRequired"),
            (reader_of_agents, "PermissionRefused"),
        ):
            assert await turned_down(committed_tenant, session_id, token=token) == (kind, 4403)
            told = await turned_down(committed_tenant, session_id, token=token, resume=resume, after=0)
            assert told == (kind, 4403)
        assert await turned_down(committed_tenant, session_id, token=foreign_key) == ("TenantNotFound", 4404)
        assert joins.of(committed_tenant, session_id) == 0
        for token in (
            sign(secret, "ada"),
            sign(secret, "ada", aud=[str(agent.pk)], session_id=session_id),
            key,
        ):
            async with opened(committed_tenant, session_id, token=token) as wire:
                await tell(committed_tenant, session_id)
                assert (await wire.receive_json_from(PATIENCE))["event"] == "note"

    stranger = make_tenant()
    make_secret_elsewhere = make_secret(stranger)
    foreign_key = make_key(stranger)[1]
    reader_of_agents = make_key(committed_tenant, ("agents:read", "chat:write"))[1]
    key = make_key(committed_tenant, ("chat:read",))[1]
    play(scenario)


def test_a_key_session_is_heard_with_a_key_only(committed_tenant: Tenant, joins: Joins) -> None:
    session_id = session_of(make_agent(committed_tenant, access="key"), "ada")
    token = sign(make_secret(committed_tenant), "ada")
    key = make_key(committed_tenant, ("chat:read",))[1]

    async def scenario() -> None:
        for shown in (None, token):
            told = await turned_down(committed_tenant, session_id, token=shown)
            assert told == ("ProofRequired", 4403)
        assert joins.of(committed_tenant, session_id) == 0
        async with opened(committed_tenant, session_id, token=key) as wire:
            result = await act(wire, action="chat.send_message", agent_id=str(uuid_of), message="Hello")
            assert result["error"]["details"] == {"scope": "chat:write"}

    uuid_of = Session.unscoped.get(key=session_id).agent_id
    play(scenario)


@pytest.mark.parametrize("origin", EVIL)
def test_other_pages_get_403_at_the_handshake(committed_tenant: Tenant, joins: Joins, origin: str) -> None:
    session_id = session_of(make_agent(committed_tenant, allowed_origins=[GOOD]))

    async def scenario() -> None:
        wire = wire_to(committed_tenant, session_id, origin=origin)
        connected, _code = await wire.connect(PATIENCE)
        assert not connected  # a close before the accept: HTTP 403
        await wire.disconnect(timeout=PATIENCE)
        assert not joins.groups
        for allowed in (GOOD, None):
            async with opened(committed_tenant, session_id, origin=allowed):
                pass

    play(scenario)


def test_a_session_that_needs_its_token_is_not_heard_without(committed_tenant: Tenant, joins: Joins) -> None:
    agent = make_agent(committed_tenant, require_resume_token=True)
    session_id = session_of(agent)
    key = make_key(committed_tenant, ("chat:read",))[1]
    resume = Resume(committed_tenant.pk, session_id, 0).token()

    async def scenario() -> None:
        assert await turned_down(committed_tenant, session_id) == ("ProofRequired", 4403)
        assert joins.of(committed_tenant, session_id) == 0
        for options in ({"resume": resume}, {"resume": resume, "after": 0}, {"token": key}):
            async with opened(committed_tenant, session_id, **options):
                pass

    play(scenario)


def test_who_only_waited_may_not_speak_where_the_token_is_needed(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, require_resume_token=True)
    message = {"action": "chat.send_message", "agent_id": str(agent.pk), "message": "Hello"}

    async def scenario() -> None:
        async with opened(committed_tenant, "s-1") as author, opened(committed_tenant, "s-1") as other:
            begun = await act(author, **message)
            assert begun["success"], begun
            again = await act(author, **message)
            assert again["success"], again
            told = await act(other, **message)
            assert told["error"]["type"] == "ProofRequired"
            async with opened(committed_tenant, "s-1", resume=begun["result"]["resume_token"]) as back:
                assert (await act(back, **message))["success"]

    play(scenario)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"access": "signed"}, "ProofRequired"),
        ({"access": "key"}, "ProofRequired"),
        ({"allowed_origins": [GOOD]}, "OriginRefused"),
    ],
    ids=["signed", "key", "origins"],
)
@pytest.mark.parametrize("hint", ["told", "lost"])
def test_who_waited_without_proof_is_closed_when_the_session_begins(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], kind: str, hint: str
) -> None:
    """With the hint, at once; without it, instead of the first event: none is heard in either case."""
    agent = make_agent(committed_tenant, **config)
    key = make_key(committed_tenant)[1]
    session_id = f"s-{secrets.token_hex(8)}"
    monkeypatch.setattr(keepers.Keeper, "ask_for_rights", lambda self: None)
    if hint == "lost":
        monkeypatch.setattr("orchestrator.handlers.chat.tell_access", lambda *args: None)

    async def scenario() -> None:
        async with (
            opened(committed_tenant, session_id, origin="https://evil.com") as stranger,
            opened(committed_tenant, session_id, origin=GOOD, token=key) as owner,
        ):
            sent = await in_thread(post, agent, headers=bearer(key) | {"Origin": GOOD}, session_id=session_id)
            accepted(sent)
            if hint == "lost":
                await tell(committed_tenant, session_id)
            assert await refusal(stranger) == (kind, 4403)
            await tell(committed_tenant, session_id)
            assert (await owner.receive_json_from(PATIENCE))["event"] == "note"

    play(scenario)


def test_who_joins_while_the_session_begins_is_asked_once_more(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It became somebody's after the first look, and its hint came before we were there to hear it."""
    agent = make_agent(committed_tenant, access="key")
    enter = consumers.SessionConsumer.enter

    def begin() -> None:
        with tenant_scope(committed_tenant.pk):
            make_session(agent, "s-1")

    async def slowly(self: Any, *args: Any) -> Any:
        await in_thread(begin)
        return await enter(self, *args)

    async def scenario() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(consumers.SessionConsumer, "enter", slowly)
            assert await turned_down(committed_tenant, "s-1") == ("ProofRequired", 4403)

    play(scenario)


def test_two_agents_at_once_bind_one_session(committed_tenant: Tenant) -> None:
    """Whichever wins decides who may have waited; the other one's message answers 409."""
    public, signed = make_agent(committed_tenant), make_agent(committed_tenant, access="signed")
    token = bearer(sign(make_secret(committed_tenant), "ada"))

    async def scenario() -> None:
        session_id = f"s-{secrets.token_hex(8)}"
        async with opened(committed_tenant, session_id) as stranger:
            answers = await asyncio.gather(
                in_thread(post, public, session_id=session_id),
                in_thread(post, signed, headers=token, session_id=session_id),
            )
            statuses = [answer.status_code for answer in answers]
            assert sorted(statuses) == [202, 409]
            await tell(committed_tenant, session_id)
            if statuses[1] == 202:
                assert await refusal(stranger) == ("ProofRequired", 4403)
            else:
                assert (await stranger.receive_json_from(PATIENCE))["event"] == "note"

    for _ in range(5):
        play(scenario)


def test_random_session_ids_open_nothing(committed_tenant: Tenant) -> None:
    """Whoever guesses hears of no session, and what a guess gets does not tell whether it was near."""
    agent = make_agent(committed_tenant)
    known = [session_of(agent) for _ in range(20)]
    guesses = [secrets.token_urlsafe(16) for _ in range(2_000)]
    assert not set(known) & set(guesses)
    with tenant_scope(committed_tenant.pk):
        assert not admission.session_standings(guesses)
    seen = {
        (answer.status_code, json.dumps(answer.json()["error"]))
        for guess in [*guesses[:200], *known]
        for answer in [Client().get(f"/api/v1/sessions/{guess}/messages")]
    }
    assert len(seen) == 1


# --- Changes under open sockets ------------------------------------------------------------------------


def change(agent: Agent, **config: Any) -> None:
    with tenant_scope(agent.tenant_id):
        execute(AgentUpdateAction(agent_id=agent.pk, config=config, actor="test"))


@pytest.mark.parametrize("kept", [True, False], ids=["hint", "no hint"])
@pytest.mark.parametrize(
    ("config", "kind"),
    [({"access": "signed"}, "ProofRequired"), ({"allowed_origins": [GOOD]}, "OriginRefused")],
    ids=["signed", "origins"],
)
def test_an_agent_that_is_tightened_sends_away_who_has_no_proof(
    committed_tenant: Tenant, request: Any, config: dict[str, Any], kind: str, kept: bool
) -> None:
    agent = make_agent(committed_tenant)
    session_id = session_of(agent)

    async def scenario() -> None:
        async with opened(committed_tenant, session_id, origin="https://evil.com") as wire:
            await asyncio.to_thread(_change_unheard if not kept else change, agent, **config)
            assert await refusal(wire) == (kind, 4403)

    def _change_unheard(agent: Agent, **config: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agents.handlers.rows.tell_access", lambda *args: None)
            change(agent, **config)

    if not kept:
        request.getfixturevalue("monkeypatch").setattr(keepers, "RIGHTS_SECONDS", 0.0)
    play(scenario)


def test_a_draft_or_deleted_agents_sessions_stay_guarded(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, access="key")
    session_id = session_of(agent)

    async def scenario() -> None:
        assert await turned_down(committed_tenant, session_id) == ("ProofRequired", 4403)

    with tenant_scope(committed_tenant.pk):
        execute(AgentUpdateAction(agent_id=agent.pk, draft=True, actor="test"))
    play(scenario)
    with tenant_scope(committed_tenant.pk):
        execute(AgentDeleteAction(agent_id=agent.pk, actor="test"))
    play(scenario)


@pytest.mark.parametrize("what", ["secret", "key"])
def test_what_is_revoked_opens_no_socket_any_longer(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    agent = make_agent(committed_tenant, access="signed")
    session_id = session_of(agent, "ada")
    secret = make_secret(committed_tenant)
    row, key = make_key(committed_tenant)
    token = sign(secret, "ada") if what == "secret" else key
    monkeypatch.setattr(keepers, "RIGHTS_SECONDS", 0.0)

    def revoke() -> None:
        with tenant_scope(committed_tenant.pk):
            if what == "secret":
                execute(EndUserSecretRevokeAction(secret_id=secret.split("_")[1]))
            else:
                execute(ApiKeyRevokeAction(row_id=row.pk))

    async def scenario() -> None:
        async with opened(committed_tenant, session_id, token=token) as wire:
            await in_thread(revoke)
            assert await refusal(wire) == ("AuthenticationRequired", 4403)

    play(scenario)


def test_a_token_that_has_run_out_speaks_no_more(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was let in goes on listening; to speak takes a living token."""
    agent = make_agent(committed_tenant, access="signed")
    secret = make_secret(committed_tenant)
    message = {"action": "chat.send_message", "agent_id": str(agent.pk), "message": "Hello"}

    async def scenario() -> None:
        async with opened(committed_tenant, "s-1", token=sign(secret, "ada")) as wire:
            assert (await act(wire, **message))["success"]
            later = time.time() + 10_000
            with monkeypatch.context() as patch:
                patch.setattr("orchestrator.end_users.time.time", lambda: later)
                told = await act(wire, **message)
                assert told["error"]["details"] == {"end_user_token": "exp"}
                await tell(committed_tenant, "s-1")
                assert (await wire.receive_json_from(PATIENCE))["event"] == "note"

    play(scenario)


def test_those_who_may_listen_are_found_by_few_queries(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant, access="signed")
    open_to_all = make_tenant()
    guests = [Listener(open_to_all.pk, f"s-{number}", Visitor()) for number in range(30)]
    guests += [Listener(committed_tenant.pk, session_of(agent, "ada"), Visitor()) for _ in range(30)]

    def queries(listeners: list[Listener]) -> int:
        with CaptureQueriesContext(connection) as captured:
            found = verdicts(listeners)
        assert {listener.tenant_id for listener in found} == {committed_tenant.pk}
        assert {type(error) for error in found.values()} == {ProofRequired}
        return len(captured)

    assert queries(guests) == queries(guests[-1:])
