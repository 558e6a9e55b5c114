"""Floods, guesses and bombs, at the door of the running platform."""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from core.models import Tier
from tests.acceptance.stack import PATIENCE, PROTOCOL, Stack, Tenant, Turn, new_session, wait_for

MESSAGE = "/api/v1/chat/message"

_SEED = """
from core.models import ApiKey, Tenant, Tier
from core.models.access import SCOPES
from core.tenancy import tenant_scope

name, fields = {name!r}, {fields!r}
with tenant_scope(name):
    tier = Tier.objects.create(slug=name, name=name, **fields)
    tenant = Tenant.objects.create(id=name, name=name, tier=tier)
    key = ApiKey(tenant=tenant, name="acceptance", scopes=list(SCOPES))
    text = key.mint()
    key.save()
print(text)
"""


def tenant_of(stack: Stack, **tier: int | None) -> str:
    """A new tenant's id; of its tier's limits those are the default ones that are not given."""
    name = f"limits-{secrets.token_hex(4)}"
    stack.tenants[name] = Tenant(name, stack.shell(_SEED.format(name=name, fields=tier)))
    return name


class Client:
    """Somebody at an address of this machine: 127.0.0.1 to 127.255.255.254."""

    def __init__(self, stack: Stack, address: str = "127.0.0.1") -> None:
        parts = urlsplit(stack.base_url)
        self._connection = http.client.HTTPConnection(
            str(parts.hostname), parts.port, timeout=PATIENCE, source_address=(address, 0)
        )

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers."""
        sent = json.dumps(body) if body is not None else None
        self._connection.request(method, path, sent, {"Content-Type": "application/json", **headers})
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read()), {k.lower(): v for k, v in answer.getheaders()}

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def client_at(stack: Stack, clients: ExitStack, address: str) -> Client:
    client = Client(stack, address)
    clients.callback(client.close)
    return client


def assert_told(answer: tuple[int, dict[str, Any], dict[str, str]], limit: str) -> None:
    """What everybody gets who asks too often."""
    status, body, headers = answer
    assert status == 429
    assert (body["error"]["type"], body["error"]["details"]["limit"]) == ("RateLimited", limit)
    assert int(headers["retry-after"]) >= 1
    assert headers["x-ratelimit-remaining"] == "0"
    assert f'"{limit}";r=0' in headers["ratelimit"]


# --- Floods -------------------------------------------------------------------------------------------


def test_a_thousand_messages_of_one_address(stack: Stack, clients: ExitStack) -> None:
    """As many as the bucket holds and refills; nobody else hears of it."""
    agent_id = stack.agent("echo", provider="scripted", tenant=tenant_of(stack))
    begun = time.monotonic()

    def flood(client: Client) -> list[tuple[int, dict[str, Any], dict[str, str]]]:
        return [client.ask("POST", MESSAGE, {"agent_id": agent_id, "message": "Hi"}) for _ in range(125)]

    with ThreadPoolExecutor(8) as threads:
        crowd = [client_at(stack, clients, "127.0.1.1") for _ in range(8)]
        answers = [answer for found in threads.map(flood, crowd) for answer in found]
    statuses = Counter(status for status, _, _ in answers)
    assert statuses.keys() == {202, 429}
    windows = (time.monotonic() - begun) / 10
    assert 100 <= statuses[202] <= 100 * (windows + 1.1)
    for answer in answers:
        if answer[0] == 429:
            assert_told(answer, "ip")
    other = client_at(stack, clients, "127.0.1.2")
    status, _, headers = other.ask("POST", MESSAGE, {"agent_id": agent_id, "message": "Hi"})
    assert (status, headers["x-ratelimit-limit"]) == (202, "100")


def test_two_hundred_addresses_and_one_agent(stack: Stack, clients: ExitStack) -> None:
    tenant = tenant_of(stack, **Tier.UNLIMITED | {"agent_requests_per_minute": 50})
    agent_id, other = (stack.agent("echo", provider="scripted", tenant=tenant) for _ in range(2))

    def ask(number: int) -> list[tuple[int, dict[str, Any], dict[str, str]]]:
        client = Client(stack, f"127.0.2.{number}")
        try:
            return [client.ask("POST", MESSAGE, {"agent_id": agent_id, "message": "Hi"}) for _ in range(2)]
        finally:
            client.close()

    with ThreadPoolExecutor(8) as threads:
        answers = [answer for found in threads.map(ask, range(1, 201)) for answer in found]
    statuses = Counter(status for status, _, _ in answers)
    assert 50 <= statuses[202] <= 100
    assert statuses[202] + statuses[429] == 400
    assert_told(next(answer for answer in answers if answer[0] == 429), "agent")
    stack.ask(other)


def test_the_demo_tenant_is_never_limited(stack: Stack) -> None:
    """Nor is what concerns nobody, for this machine itself."""
    paths = ["/api/v1/chat/status/0", "/api/v1/agents", "/nothing", "/", "/api/v1/sessions/x/messages"]

    def flood(_: int) -> set[int]:
        client = Client(stack)
        try:
            found = set()
            for path in paths * 20:
                client._connection.request("GET", path)
                answer = client._connection.getresponse()
                answer.read()
                found.add(answer.status)
            return found
        finally:
            client.close()

    with ThreadPoolExecutor(8) as threads:
        assert set().union(*threads.map(flood, range(10))) == {200, 401, 403, 404}


# --- Sockets ------------------------------------------------------------------------------------------


def test_connects_of_one_address_are_told_and_closed(stack: Stack) -> None:
    tenant = tenant_of(stack, ip_connects_per_minute=3)
    here = {"tenant": tenant, "source_address": ("127.0.3.1", 0)}
    with ExitStack() as opened:
        sockets = [opened.enter_context(stack.socket(new_session(), **here)) for _ in range(3)]
        code, error = stack.refusal(new_session(), **here)
        assert (code, error["event"]) == (4429, "error")
        assert (error["data"]["type"], error["data"]["details"]["limit"]) == ("RateLimited", "connects")
        assert all(socket.lives() for socket in sockets)
        with stack.socket(new_session(), tenant=tenant, source_address=("127.0.3.2", 0)) as socket:
            assert socket.lives()


def test_a_session_is_sent_so_many_messages_whichever_way(stack: Stack) -> None:
    tenant = tenant_of(stack, session_messages_per_minute=3)
    agent_id, session_id = stack.agent("echo", provider="scripted", tenant=tenant), new_session()
    fields = {"agent_id": agent_id, "message": "Hi"}
    with stack.socket(session_id, tenant=tenant) as socket:
        assert socket.act("chat.send_message", **fields)["success"]
        stack.ask(agent_id, session_id=session_id)
        assert socket.act("chat.send_message", **fields)["success"]
        refused = socket.act("chat.send_message", **fields)
        assert (refused["success"], refused["error"]["type"]) == (False, "RateLimited")
        answer = stack.request("POST", MESSAGE, json={**fields, "session_id": session_id})
        assert (answer.status_code, answer.json()["error"]["details"]["limit"]) == (429, "session")
        heard = [event for _ in range(3) for event in socket.turn()]
        assert socket.lives()
    assert [event["seq"] for event in heard] == list(range(1, len(heard) + 1))
    # One turn's last word may come after the next one's first.
    tasks = dict.fromkeys(event["task_id"] for event in heard)
    turns = [Turn(event for event in heard if event["task_id"] == task_id).order() for task_id in tasks]
    assert [turn.replace("T", "") for turn in turns] == ["SCc"] * 3


# --- Guesses ------------------------------------------------------------------------------------------


def test_random_sessions_and_tokens_open_nothing(stack: Stack, clients: ExitStack) -> None:
    """Twenty tries a minute, over HTTP and sockets together; then nobody at that address has another."""
    told = stack.ask(stack.agent("echo", provider="scripted"), session_id=new_session())
    stack.finished(told["task_id"])
    path, address = f"/api/v1/sessions/{told['session_id']}/messages", "127.0.4.1"
    body, _, sign = told["resume_token"].rpartition("~")
    guesser = client_at(stack, clients, address)

    def guess(number: int) -> int:
        token = f"{body}~{secrets.token_urlsafe(len(sign))}" if number % 2 else secrets.token_urlsafe(60)
        there = path if number % 3 else f"/api/v1/sessions/{secrets.token_urlsafe(16)}/messages"
        status, _, _ = guesser.ask("GET", there, **{"Nooble-Resume": token})
        return status

    assert [guess(number) for number in range(15)] == [403] * 15
    for _ in range(5):
        code, error = stack.refusal(
            told["session_id"],
            protocols=[PROTOCOL, f"nooble.resume.{secrets.token_urlsafe(60)}"],
            source_address=(address, 0),
        )
        assert (code, error["data"]["type"]) == (4403, "PermissionRefused")
    assert {guess(number) for number in range(200)} == {429}
    assert_told(guesser.ask("GET", path, **{"Nooble-Resume": "forged"}), "tokens")
    code, _ = stack.refusal(
        told["session_id"], protocols=[PROTOCOL, "nooble.resume.forged"], source_address=(address, 0)
    )
    assert code == 4429
    # Who has the token is let in, also from there.
    status, found, _ = guesser.ask("GET", path, **{"Nooble-Resume": told["resume_token"]})
    assert (status, len(found["items"])) == (200, 2)


# --- Backlogs -----------------------------------------------------------------------------------------


def test_a_backlog_ends_somewhere_and_the_rest_is_told_when_to_come_back(stack: Stack) -> None:
    tenant = tenant_of(stack, **Tier.UNLIMITED | {"max_waiting": 3})
    agent_id = stack.agent("echo", provider="scripted", tenant=tenant)
    accepted = []
    with stack.agents_paused():
        for _ in range(10):
            answer = stack.request("POST", MESSAGE, json={"agent_id": agent_id, "message": "Hi"})
            if answer.status_code != 202:
                break
            accepted.append(answer.json()["result"]["task_id"])
        # A worker may have been about to take one, or several.
        assert 3 <= len(accepted) < 10
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["details"]["limit"]) == (429, "QueueFull", 3)
        assert int(answer.headers["Retry-After"]) == error["details"]["retry_after"] >= 1
        other = stack.agent("echo", provider="scripted")
        waiting = stack.ask(other)["task_id"]
    for task_id in (*accepted, waiting):
        assert stack.finished(task_id)["status"] == "completed"
    wait_for(lambda: stack.request("POST", MESSAGE, json={"agent_id": agent_id, "message": "Hi"}).ok)


def test_how_long_an_answer_takes_is_measured(stack: Stack) -> None:
    agent_id = stack.agent("echo", provider="scripted", tenant=tenant_of(stack, **Tier.UNLIMITED))
    told = stack.ask(agent_id)
    assert told["estimated_time"] == 8.0
    stack.finished(told["task_id"])
    wait_for(lambda: 0 < stack.ask(agent_id)["estimated_time"] < 8.0)


# --- Bombs --------------------------------------------------------------------------------------------

MIB = 2**20


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b'{"message": "' + b"x" * (30 * MIB) + b'"}', {413}),
        (b"[" * 100_000 + b"]" * 100_000, {400}),
        (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, {400}),
        (b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}", {413}),
        (b"{" + b",".join(b'"k%d":1' % number for number in range(20_000)) + b"}", {400}),
    ],
    ids=["30 MB", "100,000 lists deep", "40,000 objects deep", "a million keys", "20,000 keys"],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_a_bomb_is_refused_and_the_server_goes_on(
    stack: Stack, body: bytes, statuses: set[int], chunked: bool
) -> None:
    headers = {"Content-Type": "application/json"}
    data: Any = (body[at : at + MIB] for at in range(0, len(body), MIB)) if chunked else body
    with stack.socket(new_session()) as socket:
        answer = stack.request("POST", MESSAGE, data=data, headers=headers)
        assert answer.status_code in statuses, answer.text[:500]
        assert answer.json()["error"]["type"]
        assert socket.lives()
    assert stack.request("GET", "/health").ok


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"{" * 30 * MIB, b'{"a":' * 1_000_000], ids=["lists", "braces", "objects"]
)
def test_what_may_be_large_may_not_be_deep(stack: Stack, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = stack.request("POST", "/api/v1/agents/import", data=body, headers=headers, key=stack.demo.key)
    assert answer.status_code == 400, answer.text[:500]
    assert stack.request("GET", "/health").ok
