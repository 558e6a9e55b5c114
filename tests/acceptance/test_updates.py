"""A tenant's dashboards, services that tell of their work, and webhooks that may not look inside."""

from __future__ import annotations

import datetime
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from websockets.sync.client import ClientConnection, connect

from agents.events import names
from tests.acceptance.stack import PATIENCE, PROTOCOL, Socket, Stack, new_model, new_session, wait_for
from tests.orchestrator.webhooks.receiver import Receiver

WITHIN = 1.0  # seconds


def ws(stack: Stack, path: str) -> str:
    return stack.base_url.replace("http", "ws", 1) + path


@contextmanager
def dashboard(stack: Stack, tenant: str = "demo", **options: Any) -> Iterator[Socket]:
    protocols = [PROTOCOL, f"nooble.bearer.{stack.tenants[tenant].key}"]
    url = ws(stack, f"/ws/tenants/{tenant}/updates")
    with stack.socket("", url=url, **{"protocols": protocols, **options}) as socket:
        yield socket


@pytest.fixture(scope="module")
def service_token(stack: Stack) -> str:
    token: str = json.loads((stack.home / "secrets.json").read_text())["SERVICE_TOKEN"]
    return token


@contextmanager
def ingress(stack: Stack, **hello: Any) -> Iterator[ClientConnection]:
    """A connection of a service that has said who it is."""
    url = ws(stack, "/ws/task_updates")
    with connect(url, compression=None, proxy=None, open_timeout=PATIENCE) as connection:
        connection.send(json.dumps(hello))
        yield connection


@contextmanager
def service(stack: Stack, token: str, name: str) -> Iterator[Service]:
    with ingress(stack, service_token=token, service_name=name) as connection:
        assert json.loads(connection.recv(timeout=PATIENCE)) == {"status": "authenticated"}
        yield Service(connection)


class Service:
    """A service that has been let in."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def say(self, text: str) -> None:
        self._connection.send(text)

    def receive(self) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = json.loads(self._connection.recv(timeout=PATIENCE))
            if message["event"] != "ping":
                return message


def test_a_dashboard_hears_of_changes_within_a_second(stack: Stack) -> None:
    with dashboard(stack) as socket:
        assert socket.hello == {"event": "connection_established", "data": {"channel": "tenant:demo"}}
        agent_id = stack.agent("fake?tokens=1")
        message = socket.receive()
        assert message.keys() == {"channel", "event", "data"}
        assert (message["channel"], message["event"]) == ("tenant:demo", "agent_created")
        assert message["data"]["agent_id"] == agent_id
        waits = []
        for number in range(5):
            key = stack.demo.key
            answer = stack.request("PATCH", f"/api/v1/agents/{agent_id}", json={"name": f"{number}"}, key=key)
            assert answer.status_code == 200
            begun = time.monotonic()
            message = socket.receive()
            waits.append(time.monotonic() - begun)
            assert (message["event"], message["data"]["agent_name"]) == ("agent_updated", f"{number}")
            assert message["data"]["changes"] == ["name"]
        # Of five, since this machine has other things to do.
        assert sorted(waits)[2] < WITHIN, waits
        # Another tenant's changes are not among them.
        stack.agent("fake?tokens=1", tenant="other")
        stack.request("DELETE", f"/api/v1/agents/{agent_id}", key=stack.demo.key)
        assert socket.receive()["event"] == "agent_deleted"


def test_a_dashboard_needs_its_tenants_key(stack: Stack, nothing_stored: None) -> None:
    foreign = [PROTOCOL, f"nooble.bearer.{stack.tenants['other'].key}"]
    for protocols, code in ((None, 4403), ([PROTOCOL], 4403), (foreign, 4404), (foreign[1:], 4400)):
        with dashboard(stack, protocols=protocols) as socket:
            assert socket.closing() == code
            assert socket.hello["event"] == "error"


def test_a_person_of_the_console_sees_a_tenants_dashboard(stack: Stack) -> None:
    demo = json.loads((stack.home / "demo.json").read_text())
    browser = requests.Session()
    page = f"{stack.base_url}/admin/login/"
    browser.get(page)
    form = {**demo["admin"], "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
    browser.post(page, form, headers={"Referer": page})
    cookie = {"Cookie": f"sessionid={browser.cookies['sessionid']}"}
    for origin, expected in (
        (stack.base_url, "connection_established"),
        ("https://evil.example.com", "error"),
    ):
        options = {"protocols": None, "additional_headers": cookie, "origin": origin}
        with dashboard(stack, **options) as socket:
            assert socket.hello["event"] == expected


@pytest.mark.parametrize("name", ["agent-execution", "agent-execution-service"])
def test_a_service_tells_a_session_of_its_progress(stack: Stack, service_token: str, name: str) -> None:
    agent_id = stack.agent(new_model("fake?tokens=200&interval=0.02"))
    with stack.socket(new_session()) as client, service(stack, service_token, name) as wire:
        session_id = client.hello["data"]["session_id"]
        task_id = stack.ask(agent_id, session_id=session_id)["task_id"]
        client.until("agent_execution_started")
        event = {
            "event": "agent_execution_progress",
            "service": name,
            "task_id": task_id,
            "global_task_id": None,
            "tenant_id": "demo",
            "timestamp": "2026-11-20T12:00:00.123456",
            "data": {"stage": "halfway"},
        }
        wire.say(json.dumps(event))
        told = client.until("agent_execution_progress")[-1]
        assert (told["service"], told["data"], told["task_id"]) == (
            "agent-execution",
            {"stage": "halfway"},
            task_id,
        )
        wire.say(json.dumps({**event, "event": "task_completed", "data": {}}))
        assert wire.receive()["data"]["type"] == "TaskIsOpen"
        wire.say("no JSON")
        assert wire.receive()["data"]["type"] == "MalformedRequest"
        wire.say(json.dumps({**event, "event_id": str(uuid.uuid4()), "task_id": str(uuid.uuid4())}))
        assert wire.receive()["data"]["error"]["type"] == "TaskNotFound"
        stack.cancel(task_id)
        client.until("task_status_update")
    stack.finished(task_id)


@pytest.mark.parametrize("token", ["wrong-wrong-wrong-wrong", "", None])
def test_who_is_no_service_is_refused(stack: Stack, token: str | None, nothing_stored: None) -> None:
    with ingress(stack, service_token=token, service_name="agent-management") as connection:
        socket = Socket(connection)
        assert socket.hello["data"]["type"] == "ServiceRefused"
        assert socket.closing() == 4403


def test_a_webhook_hears_what_happens(stack: Stack) -> None:
    key, receiver = stack.demo.key, Receiver()
    made = stack.request("POST", "/api/v1/webhooks", json={"url": receiver.url}, key=key)
    assert made.status_code == 201
    there = f"/api/v1/webhooks/{made.json()['webhook_id']}"
    try:
        agent_id = stack.agent("fake?tokens=1")
        wait_for(lambda: bool(receiver.taken))
    finally:
        receiver.close()
    event = receiver.taken[0].verify(made.json()["secret"])
    assert (event["event"], event["data"]["agent_id"]) == ("agent_created", agent_id)

    def log() -> Any:
        return stack.request("GET", f"{there}/deliveries", key=key).json()["items"]

    wait_for(lambda: [item["status"] for item in log()], equal_to=["delivered"])
    assert stack.request("DELETE", there, key=key).status_code == 204
    assert stack.request("DELETE", f"/api/v1/agents/{agent_id}", key=key).status_code == 204


TEMPLATE = {
    "name": "Greeter",
    "type": "assistant",
    "description": "Greets.",
    "category": "other",
    "config": {"provider": "openai", "model": "fake?tokens=1", "instructions": "Greet."},
}


def test_every_notice_of_management_is_told_to_dashboards_and_webhooks(stack: Stack) -> None:
    """Each in the one envelope; a fact with two names under both."""
    key, receiver = stack.demo.key, Receiver()

    def ask(method: str, path: str, **body: Any) -> dict[str, Any]:
        answer = stack.request(method, f"/api/v1/{path}", key=key, **({"json": body} if body else {}))
        assert answer.ok, answer.text
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    hook = ask("POST", "webhooks", url=receiver.url)
    try:
        with dashboard(stack) as socket:
            agent_id = stack.agent("fake?tokens=1")
            ask("PATCH", f"agents/{agent_id}", name="Other", config={"temperature": 0.5})
            ask("POST", f"agents/{agent_id}/validate")
            seen = [socket.receive() for _ in range(4)]  # the check is a worker's: it comes when it comes
            ask("DELETE", f"agents/{agent_id}")
            template_id = ask("POST", "templates", **TEMPLATE)["template_id"]
            ask("PATCH", f"templates/{template_id}", description="Greets well.")
            ask("DELETE", f"templates/{template_id}")
            seen += [socket.receive() for _ in range(4)]
        wait_for(lambda: len(receiver.taken), equal_to=8)
    finally:
        receiver.close()
        ask("DELETE", f"webhooks/{hook['webhook_id']}")
    heard = [request.verify(hook["secret"]) for request in receiver.taken]
    assert {event["event"] for event in heard} == {message["event"] for message in seen} == set(names())
    by_name = {event["event"]: event for event in heard}
    for event in heard:
        envelope = {"event", "service", "task_id", "global_task_id", "tenant_id", "timestamp", "data"}
        assert envelope | {"event_id", "seq"} <= event.keys()
        assert (event["service"], event["tenant_id"]) == ("agent-management", "demo")
        datetime.datetime.fromisoformat(event["timestamp"])
    for message in seen:
        assert message["channel"] == "tenant:demo"
        assert message["data"] == by_name[message["event"]]["data"]
    updated = by_name["agent_updated"]["data"]
    assert (updated["agent_id"], updated["version"]) == (agent_id, "2.0")
    assert sorted(updated["changes"]) == ["config.temperature", "name", "published_version"]
    assert by_name["agent_validated"]["data"]["valid"] is True
    for name, alias in (
        ("agent_validated", "validation_complete"),
        ("template_created", "agent_template_created"),
    ):
        assert by_name[alias]["alias_of"] == name
        assert by_name[alias]["data"] == by_name[name]["data"]


@pytest.mark.parametrize("host", ["127.0.0.2", "10.0.0.1", "169.254.169.254", "[::1]", "2130706434"])
def test_a_webhook_does_not_look_inside(stack: Stack, nothing_stored: None, host: str) -> None:
    answer = stack.request("POST", "/api/v1/webhooks", json={"url": f"http://{host}/"}, key=stack.demo.key)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"] == {"url": "not a public address"}
