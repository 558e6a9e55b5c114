"""Sessions over HTTP."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from agents.models import Agent
from conversations.models import Message, Session
from core import aio
from core.actions.bus import execute
from core.actions.worker import run_task
from core.events import log
from core.events.groups import session_name
from core.models import AuditEntry, Task, Tenant
from core.tenancy import tenant_scope
from orchestrator.access import Resume
from orchestrator.actions import ChatMessageSent, ChatSendMessageAction
from orchestrator.handlers import chat
from orchestrator.models import IdempotencyKey
from orchestrator.routing import websocket_urlpatterns
from tests.api import Api
from tests.factories import make_agent, make_key, make_message, make_session, make_tenant

SESSIONS = "/api/v1/sessions"
PATIENCE = 10
SHOWN = {
    "session_id",
    "agent_id",
    "state",
    "title",
    "user_info",
    "context",
    "created_at",
    "last_active_at",
    "ended_at",
}


@pytest.fixture
def api(tenant: Tenant) -> Api:
    return Api(tenant)


def send(agent: Agent, message: str = "Hello?", **fields: Any) -> ChatMessageSent:
    with tenant_scope(agent.tenant_id):
        return execute(ChatSendMessageAction(agent_id=agent.pk, message=message, **fields))


def test_a_message_begins_a_session_that_management_sees(api: Api) -> None:
    agent = make_agent(api.tenant)
    info = {"user_id": "ada", "name": "Ada", "email": "ada@example.com", "locale": "en", "plan": {"n": 1}}
    sent = send(agent, "  Where is\nmy order? ", user_info=info)
    shown = api("GET", f"{SESSIONS}/{sent.session_id}")
    assert set(shown) == SHOWN
    assert (shown["session_id"], shown["agent_id"]) == (sent.session_id, str(agent.pk))
    assert (shown["state"], shown["title"], shown["ended_at"]) == ("active", "Where is my order?", None)
    assert (shown["user_info"], shown["context"]) == (info, {})


def test_who_speaks_is_bounded(client: Client, tenant: Tenant) -> None:
    body = {"agent_id": str(make_agent(tenant).pk), "message": "Hello?"}
    for note, status in (("x" * 4_000, 202), ("x" * 4_096, 422)):
        body["user_info"] = {"user_id": "ada", "note": note}  # type: ignore[assignment]
        answer = client.post("/api/v1/chat/message", body, content_type="application/json")
        assert answer.status_code == status


def test_a_session_begins_with_its_context(api: Api) -> None:
    agent = make_agent(api.tenant)
    body = {"agent_id": str(agent.pk), "session_id": "order-7", "title": "Order 7", "context": {"order": "7"}}
    made = api("POST", SESSIONS, body, expect=201)
    assert set(made) == SHOWN | {"resume_token"}
    assert (made["session_id"], made["state"], made["context"]) == ("order-7", "created", {"order": "7"})
    assert Resume.verify(made["resume_token"], api.tenant.pk, "order-7") == Resume(
        api.tenant.pk, "order-7", 0
    )
    assert api("POST", SESSIONS, body, expect=409)["error"]["type"] == "SessionExists"
    sent = send(agent, session_id="order-7")
    assert "resume_token" not in sent.model_dump(exclude_unset=True)
    assert api("GET", f"{SESSIONS}/order-7")["state"] == "active"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"title": "x" * 201}, "title"),
        ({"context": {"Bad": "x"}}, "context.Bad.[key]"),
        ({"context": {"user_id": "x"}}, "context.user_id.[key]"),
        ({"context": {"a": 1}}, "context.a"),
        ({"context": {"a": "x" * 20_000}}, "context"),
        ({"state": "closed"}, "state"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_changes_that_do_not_fit(api: Api, change: dict[str, Any], field: str) -> None:
    session = make_session(make_agent(api.tenant))
    assert field in api.refused("PATCH", f"{SESSIONS}/{session.key}", change)
    if field != "state":
        body = {"agent_id": str(session.agent_id), **change}
        assert field in api.refused("POST", SESSIONS, body)


def test_a_change_of_title_and_context(api: Api) -> None:
    session = make_session(make_agent(api.tenant))
    change = {"title": "Order 7", "context": {"order": "7", "name": "Ada"}}
    assert api("PATCH", f"{SESSIONS}/{session.key}", change)["context"] == change["context"]
    shown = api("PATCH", f"{SESSIONS}/{session.key}", {"context": {"name": None}})
    assert (shown["title"], shown["context"]) == ("Order 7", {"order": "7"})
    assert AuditEntry.unscoped.filter(verb="session.update", object_id=session.key).count() == 2


def test_context_variables_stand_in_the_instructions(committed_tenant: Tenant) -> None:
    """The scripted model answers nothing but its question: what it was sent is looked at elsewhere."""
    agent = make_agent(committed_tenant, instructions="Order {{order}} of {{user_id}}; {{unset}}.")
    api = Api(committed_tenant)
    api(
        "POST",
        SESSIONS,
        {"agent_id": str(agent.pk), "session_id": "s", "context": {"order": "7"}},
        expect=201,
    )
    sent = send(agent, session_id="s")
    with CaptureQueriesContext(connection) as queries:
        run_task(str(sent.task_id), committed_tenant.pk)
    asked = [query["sql"] for query in queries if '"conversations_session"."context"' in query["sql"]]
    assert len(asked) == 1
    plain = send(make_agent(committed_tenant, instructions="Order of {{user_id}}."))
    with CaptureQueriesContext(connection) as queries:
        run_task(str(plain.task_id), committed_tenant.pk)
    assert not [query for query in queries if '"conversations_session"."context"' in query["sql"]]


def test_a_message_asks_for_its_session_once(tenant: Tenant) -> None:
    """And makes it, or writes what it changes of it, by the same statement."""
    agent = make_agent(tenant)
    session_id = send(agent).session_id
    with CaptureQueriesContext(connection) as queries:
        send(agent, session_id=session_id, user_info={"user_id": "ada", "name": "Ada"})
    asked = [query["sql"] for query in queries if "conversations_session" in query["sql"]]
    assert len(asked) == 1
    assert asked[0].startswith("INSERT")


# --- The list ------------------------------------------------------------------------------------------


def listed(api: Api, query: str = "") -> list[str]:
    return [item["session_id"] for item in api("GET", f"{SESSIONS}{query}")["items"]]


def test_the_list_and_its_filters(api: Api) -> None:
    first, second = make_agent(api.tenant), make_agent(api.tenant)
    send(first, session_id="a", user_info={"user_id": "ada"})
    send(first, session_id="b", user_info={"user_id": "bob"})
    send(second, session_id="c", user_info={"user_id": "ada"})
    api("POST", f"{SESSIONS}/b/close")
    send(make_agent(make_tenant()), session_id="foreign", user_info={"user_id": "ada"})
    assert listed(api) == ["c", "b", "a"]
    assert listed(api, f"?agent_id={first.pk}") == ["b", "a"]
    assert listed(api, "?user_id=ada") == ["c", "a"]
    assert listed(api, "?state=closed") == ["b"]
    assert listed(api, f"?state=active&user_id=ada&agent_id={first.pk}") == ["a"]
    assert listed(api, f"?agent_id={uuid.uuid4()}") == listed(api, "?user_id=nobody") == []


def test_the_list_comes_in_pages(api: Api) -> None:
    agent = make_agent(api.tenant)
    keys = [make_session(agent, f"s-{number}").key for number in range(5)]
    # Two that began in the same moment.
    moment = Session.unscoped.get(key="s-3").created_at
    Session.unscoped.filter(key="s-2").update(created_at=moment)
    found: list[str] = []
    query = "?limit=2"
    while True:
        page = api("GET", f"{SESSIONS}{query}")
        assert len(page["items"]) <= 2
        found += [item["session_id"] for item in page["items"]]
        if page["next"] is None:
            break
        query = f"?limit=2&cursor={page['next']}"
        # What goes meanwhile leaves the pages as they are.
        Session.unscoped.filter(key="s-3").delete()
    assert found == keys[::-1]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "cursor=x",
        "cursor=1",
        "cursor=1-",
        "cursor=-1-1",
        "agent_id=x",
        "state=open",
        "user_id=%00",
    ],
)
def test_queries_that_do_not_fit(api: Api, query: str) -> None:
    name = query.partition("=")[0]
    assert name in api.refused("GET", f"{SESSIONS}?{query}", None)


# --- Closed --------------------------------------------------------------------------------------------


def test_a_closed_session_refuses_messages(api: Api, client: Client) -> None:
    agent = make_agent(api.tenant)
    sent = send(agent)
    closed = api("POST", f"{SESSIONS}/{sent.session_id}/close")
    assert closed["state"] == "closed"
    assert closed["ended_at"] is not None
    assert Task.unscoped.get(pk=sent.task_id).status == "cancelled"
    body = {"agent_id": str(agent.pk), "message": "Hello?", "session_id": sent.session_id}
    answer = client.post("/api/v1/chat/message", body, content_type="application/json")
    assert answer.status_code == 409
    assert answer.json()["error"]["type"] == "SessionClosed"


# --- Exported ------------------------------------------------------------------------------------------


def exported(key: str, path: str, language: str = "en") -> tuple[Any, bytes]:
    headers = {"Authorization": f"Bearer {key}", "Accept-Language": language}
    answer: Any = Client().get(path, headers=headers)

    async def whole() -> bytes:
        return b"".join([piece async for piece in answer])

    return answer, aio.run(whole()) if answer.streaming else answer.content


def test_a_session_is_exported(committed_tenant: Tenant) -> None:
    session = make_session(make_agent(committed_tenant))
    make_message(session, "user", "Hola 🎈")
    key = make_key(committed_tenant)[1]
    path = f"{SESSIONS}/{session.key}/export"
    answer, body = exported(key, path)
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    assert [message["text"] for message in json.loads(body)["messages"]] == ["Hola 🎈"]
    answer, body = exported(key, f"{path}?format=markdown")
    assert answer["Content-Type"] == "text/markdown; charset=utf-8"
    assert "> Hola 🎈" in body.decode()
    answer, body = exported(key, f"{path}?format=text", "es")
    assert "Usuario" in body.decode()
    answer, body = exported(key, f"{path}?format=pdf")
    assert answer.status_code == 422
    assert "format" in json.loads(body)["error"]["details"]


# --- Deleted -------------------------------------------------------------------------------------------


def test_with_a_session_goes_the_answer_that_was_kept_for_its_key(api: Api, client: Client) -> None:
    agent = make_agent(api.tenant)

    def ask() -> str:
        body = {"agent_id": str(agent.pk), "message": "Hello?"}
        headers = {"Idempotency-Key": "k" * 22}
        answer = client.post("/api/v1/chat/message", body, content_type="application/json", headers=headers)
        return str(answer.json()["result"]["session_id"])

    session_id = ask()
    assert ask() == session_id
    assert IdempotencyKey.unscoped.get().session_id == session_id
    api("DELETE", f"{SESSIONS}/{session_id}", expect=204)
    assert not IdempotencyKey.unscoped.exists()
    assert not Message.unscoped.exists()
    api("GET", f"{SESSIONS}/{session_id}", expect=404)
    assert ask() != session_id


def test_a_message_that_was_on_its_way_when_its_session_was_deleted_is_heard(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had looked at the deleted session's log already: what it begins has one of its own."""
    agent, api = make_agent(committed_tenant), Api(committed_tenant)
    session_id = send(agent).session_id
    run_task(str(Task.unscoped.get(action="agent.execute").pk), committed_tenant.pk)
    look = chat.last_seq_sync

    def look_and_lose(name: str) -> int | None:
        tail = look(name)
        assert tail
        api("DELETE", f"{SESSIONS}/{session_id}", expect=204)
        return tail

    monkeypatch.setattr(chat, "last_seq_sync", look_and_lose)
    sent = send(agent, session_id=session_id)
    assert sent.resume_token is not None
    run_task(str(sent.task_id), committed_tenant.pk)
    told = aio.run(log.read(session_name(committed_tenant.pk, session_id), 0))
    assert [seq for seq, _body in told] == list(range(1, len(told) + 1))
    assert b'"agent_execution_completed"' in b"".join(body for _seq, body in told)
    assert Message.unscoped.get(role="user").seq == 0


def test_a_deletion_is_on_record_by_its_key(api: Api) -> None:
    session = make_session(make_agent(api.tenant))
    api("DELETE", f"{SESSIONS}/{session.key}", expect=204)
    entry = AuditEntry.unscoped.get(verb="session.delete")
    assert entry.object_id == session.key
    assert entry.actor.startswith("key:")


def test_all_sessions_of_one_person_are_deleted(api: Api) -> None:
    agent = make_agent(api.tenant)
    for user_id in ("ada", "ada", "bob"):
        send(agent, user_info={"user_id": user_id})
    assert api("DELETE", f"{SESSIONS}?user_id=ada") == {"deleted": 2}
    assert Session.unscoped.get().user_id == "bob"
    assert "user_id" in api.refused("DELETE", SESSIONS, None)
    assert "user_id" in api.refused("DELETE", f"{SESSIONS}?user_id=", None)
    assert Session.unscoped.count() == 1


async def deleted_under(session: Session, delete: Any) -> list[dict[str, Any]]:
    """What an open socket hears when its session is deleted, and the code with which it is closed."""
    wire = WebsocketCommunicator(URLRouter(websocket_urlpatterns), f"/ws/{session.tenant_id}/{session.key}")
    assert (await wire.connect(PATIENCE))[0]
    assert (await wire.receive_json_from(PATIENCE))["event"] == "connection_established"
    await asyncio.to_thread(delete)
    error = await wire.receive_json_from(PATIENCE)
    closed = await wire.receive_output(PATIENCE)
    await wire.disconnect(timeout=PATIENCE)
    return [error, closed]


def test_the_sockets_of_a_deleted_session_are_closed(committed_tenant: Tenant) -> None:
    session = make_session(make_agent(committed_tenant))
    api = Api(committed_tenant)

    def delete() -> None:
        try:
            api("DELETE", f"{SESSIONS}/{session.key}", expect=204)
        finally:
            connection.close()

    error, closed = aio.run(deleted_under(session, delete))
    assert (error["event"], error["data"]["type"]) == ("error", "SessionNotFound")
    assert (closed["type"], closed["code"]) == ("websocket.close", 4404)


def test_the_callback_of_a_deleted_run_says_nothing(committed_tenant: Tenant) -> None:
    sent = send(make_agent(committed_tenant))
    run_task(str(sent.task_id), committed_tenant.pk)
    callback = Task.unscoped.get(action="websocket.send_message")
    Task.unscoped.filter(pk=sent.task_id).delete()
    run_task(str(callback.pk), committed_tenant.pk)
    callback.refresh_from_db()
    assert callback.status == "completed"


# --- Who may -------------------------------------------------------------------------------------------

CALLS = [
    ("GET", "", "read"),
    ("POST", "", "write"),
    ("DELETE", "?user_id=ada", "write"),
    ("GET", "/{}", "read"),
    ("PATCH", "/{}", "write"),
    ("DELETE", "/{}", "write"),
    ("POST", "/{}/close", "write"),
    ("GET", "/{}/export", "read"),
    ("GET", "/{}/messages", "read"),
]


@pytest.mark.parametrize(("method", "path", "right"), CALLS, ids=lambda value: str(value))
def test_each_call_needs_its_scope(
    tenant: Tenant, client: Client, method: str, path: str, right: str
) -> None:
    session = make_session(make_agent(tenant))
    address = SESSIONS + path.format(session.key)
    answer = client.generic(method, address)
    assert answer.status_code == (403 if path.endswith("messages") else 401)
    other = {"read": "write", "write": "read"}[right]
    body = Api(tenant, (f"sessions:{other}", "agents:read", "chat:write"))(method, address, expect=403)
    assert body["error"]["details"] == {"scope": f"sessions:{right}"}
    assert Session.unscoped.filter(pk=session.pk, state="created").exists()


@pytest.mark.parametrize(
    ("method", "path"), [call[:2] for call in CALLS if "{}" in call[1]], ids=lambda value: str(value)
)
def test_a_foreign_session_does_not_exist(tenant: Tenant, method: str, path: str) -> None:
    session = make_session(make_agent(make_tenant()))
    api = Api(tenant)
    for key in (session.key, "absent", "not%20an%20id", "x" * 65):
        refusal = api(method, SESSIONS + path.format(key), {} if method == "PATCH" else None, expect=404)
        assert refusal["error"]["type"] == "SessionNotFound"
    assert Session.unscoped.filter(pk=session.pk, state="created").exists()
