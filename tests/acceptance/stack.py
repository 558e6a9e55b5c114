"""The running platform as its clients see it: requests, sockets, and the fake model's books."""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, TypeVar

import psutil
import psycopg
import redis
import requests
from requests.adapters import HTTPAdapter
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from core import ratelimits
from nooble.env import ROOT, Environment
from tests.acceptance import frames

T = TypeVar("T")
Event = dict[str, Any]

# Seconds until something that must happen counts as not happening.
PATIENCE = 30.0
PROTOCOL = "nooble.v1"
FAKE_KEY = "fake-key-of-the-operator"

LAST_EVENTS = ("task_completed", "task_failed", "cancelled")
FINAL = ("completed", "failed", "cancelled")


def new_session() -> str:
    return f"t-{secrets.token_hex(8)}"


def new_model(name: str) -> str:
    """The model's name with something of its own, so that its requests are found in the books."""
    return f"{name}{'&' if '?' in name else '?'}mark={secrets.token_hex(6)}"


def wait_for(look: Callable[[], T], **condition: T) -> T:
    """What `look` gives as soon as it is true, or `equal_to` something."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = look()
        if found == condition["equal_to"] if condition else found:
            return found
        assert time.monotonic() < deadline, f"did not happen in time; the last look gave {found!r}"
        time.sleep(0.02)


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that the platform would read."""
    unwanted = {name.upper() for name in Environment.model_fields} | {"ORCHESTRATOR_REDIS_URL"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def _told(event: Event) -> str:
    """The event's name, or the status that an update tells."""
    is_update = event["event"] == "task_status_update"
    return str(event["data"]["status"] if is_update else event["event"])


class Turn(list[Event]):
    """The events of one task, in the order in which a client heard them."""

    # started, token, (run) completed, (run) failed, the task's completed, failed, cancelling, cancelled
    _LETTERS = {
        "agent_execution_started": "S",
        "agent_response_token": "T",
        "agent_execution_completed": "C",
        "agent_execution_failed": "F",
        "task_completed": "c",
        "task_failed": "f",
        "cancelling": "x",
        "cancelled": "X",
    }
    _ORDER = re.compile(r"ST*Cc|ST*Ff|ST*CX|X")

    def names(self) -> list[str]:
        return [event["event"] for event in self]

    def named(self, name: str) -> list[Event]:
        return [event for event in self if event["event"] == name]

    def data(self, name: str) -> dict[str, Any]:
        """What the one event of that name says."""
        (event,) = self.named(name)
        data: dict[str, Any] = event["data"]
        return data

    @property
    def text(self) -> str:
        return "".join(event["data"]["token"] for event in self.named("agent_response_token"))

    def order(self) -> str:
        """The turn as a word of one letter an event."""
        return "".join(self._LETTERS[_told(event)] for event in self)

    def check(self) -> Turn:
        """What holds for every turn: its order, dense seqs, offsets in code points, the final text."""
        order = self.order()
        assert self._ORDER.fullmatch(order.replace("x", "")), order
        # Told at most once, to those who wait, and before the run's own end.
        assert re.fullmatch("[^xCFX]*x?[^x]*X", order) or "x" not in order, order
        first = self[0]["seq"]
        assert [event["seq"] for event in self] == list(range(first, first + len(self)))
        assert len({event["event_id"] for event in self}) == len(self)
        length = 0
        for event in self.named("agent_response_token"):
            assert event["data"]["offset"] == length
            length += len(event["data"]["token"])
        for completed in self.named("agent_execution_completed"):
            assert completed["data"]["text"] == self.text
        finals = [event["data"]["is_final"] for event in self.named("agent_response_token")]
        assert not any(finals[:-1])
        # A cancel may win the row after the last frame was sent.
        assert not finals or finals[-1] or not order.endswith("Cc")
        return self


class Socket:
    """One client's socket. Server pings are not kept: a protocol library answers for us."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._unread: deque[Event] = deque()
        self.hello = self.receive()

    @property
    def token(self) -> str:
        return str(self.hello["data"]["resume_token"])

    @property
    def last_seq(self) -> int:
        return int(self.hello["data"]["last_seq"])

    def receive(self) -> Event:
        """The next message. Raises ConnectionClosed, and TimeoutError when none comes."""
        return self._unread.popleft() if self._unread else self._receive()

    def _receive(self) -> Event:
        while True:
            message: Event = json.loads(self.connection.recv(timeout=PATIENCE))
            frames.check(message)
            if message["event"] != "ping":
                return message

    def take(self, count: int) -> list[Event]:
        return [self.receive() for _ in range(count)]

    def until(self, *names: str) -> Turn:
        """The messages up to the first with one of these names, which is the last of them."""
        heard = Turn([self.receive()])
        while heard[-1]["event"] not in names:
            heard.append(self.receive())
        return heard

    def turn(self) -> Turn:
        """The events up to the end of a task."""
        heard = Turn()
        while not heard or not is_last(heard[-1]):
            heard.append(self.receive())
        return heard

    def say(self, text: str) -> None:
        self.connection.send(text)

    def answer(self) -> Event:
        """The next answer to something that we said; events that come before it are read later."""
        passed = []
        while True:
            message = self.receive()
            if message["event"] in ("action_result", "error", "pong"):
                self._unread.extendleft(reversed(passed))
                return message
            passed.append(message)

    def act(self, action: str, **fields: Any) -> dict[str, Any]:
        """The ActionResult of a client's action."""
        self.say(json.dumps({"action": action, **fields}))
        answer = self.answer()
        assert answer["event"] == "action_result", answer
        data: dict[str, Any] = answer["data"]
        return data

    def lives(self) -> bool:
        """Whether a ping is the next thing that is answered."""
        self.say('{"action": "ping"}')
        return self.answer() == {"event": "pong"}

    def vanish(self) -> None:
        """The connection is reset, without a word."""
        self.connection.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.socket.close()

    def closing(self) -> int:
        """The code with which the server closes the socket, whatever it sends before."""
        try:
            while True:
                self.receive()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006


def is_last(event: Event) -> bool:
    """Whether this is the last event of a task."""
    return _told(event) in LAST_EVENTS


@dataclass
class Model:
    """The fake model server, a process of its own, and its books."""

    base_url: str
    http: requests.Session

    def entries(self, model: str) -> list[dict[str, Any]]:
        """What the books say about the requests of exactly that model, the oldest first."""
        books = self.base_url.removesuffix("/v1") + "/_books"
        entries: list[dict[str, Any]] = self.http.get(books, params={"model": model}).json()["requests"]
        return entries

    def entry(self, model: str) -> dict[str, Any]:
        (entry,) = self.entries(model)
        return entry


@dataclass
class Tenant:
    """A tenant and its keys, by what they may do."""

    id: str
    key: str
    keys: dict[str, str] = field(default_factory=dict)


@dataclass
class Stack:
    """Everything that runs, and how to talk to it."""

    home: Path
    log: Path
    pid: int
    base_url: str
    model: Model
    http: requests.Session
    database: psycopg.Connection[tuple[Any, ...]]
    valkey: redis.Redis
    tenants: dict[str, Tenant]

    @property
    def demo(self) -> Tenant:
        return self.tenants["demo"]

    # --- HTTP --------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        language: str | None = None,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> requests.Response:
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        if language is not None:
            sent["Accept-Language"] = language
        if token is not None:
            sent["Nooble-Resume"] = token
        return self.http.request(method, f"{self.base_url}{path}", headers=sent, timeout=PATIENCE, **options)

    def agent(self, model: str, *, tenant: str = "demo", provider: str = "openai", **config: Any) -> str:
        """A new agent's id."""
        body = {
            "name": "Acceptance",
            "type": "test",
            "config": {"provider": provider, "model": model, **config},
        }
        response = self.request("POST", "/api/v1/agents", json=body, key=self.tenants[tenant].key)
        assert response.status_code == 201, response.text
        agent_id: str = response.json()["agent_id"]
        return agent_id

    def ask(self, agent_id: str, message: str = "Hello", **fields: Any) -> dict[str, Any]:
        """The result of a message that must be accepted."""
        body = {"agent_id": agent_id, "message": message, **fields}
        response = self.request("POST", "/api/v1/chat/message", json=body)
        assert response.status_code == 202, response.text
        result: dict[str, Any] = response.json()["result"]
        return result

    def status(self, task_id: str) -> dict[str, Any]:
        response = self.request("GET", f"/api/v1/chat/status/{task_id}")
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()["result"]
        return result

    def finished(self, task_id: str) -> dict[str, Any]:
        """The task's status as soon as it is a final one."""
        wait_for(lambda: self.status(task_id)["status"] in FINAL)
        return self.status(task_id)

    def cancel(self, task_id: str, **options: Any) -> requests.Response:
        return self.request("POST", f"/api/v1/chat/cancel/{task_id}", **options)

    def messages(self, session_id: str, tenant: str = "demo", **options: Any) -> list[dict[str, Any]]:
        """The session's messages as the tenant's key sees them."""
        path = f"/api/v1/sessions/{session_id}/messages"
        response = self.request("GET", path, key=self.tenants[tenant].key, **options)
        assert response.status_code == 200, response.text
        items: list[dict[str, Any]] = response.json()["items"]
        return items

    # --- WebSocket ---------------------------------------------------------------------------------

    def socket_url(self, session_id: str, tenant: str = "demo") -> str:
        return f"{self.base_url.replace('http', 'ws', 1)}/ws/{tenant}/{session_id}"

    @contextmanager
    def socket(
        self,
        session_id: str,
        *,
        tenant: str = "demo",
        token: str | None = None,
        after: int | str | None = None,
        protocols: list[str] | None = None,
        url: str | None = None,
        **options: Any,
    ) -> Iterator[Socket]:
        """An open socket that has heard its first message; with a token, one that comes back."""
        address = url or self.socket_url(session_id, tenant)
        if after is not None:
            address += f"?after={after}"
        if protocols is None and token is not None:
            protocols = [PROTOCOL, f"nooble.resume.{token}"]
        with connect(
            address,
            subprotocols=protocols,  # type: ignore[arg-type]
            compression=None,
            proxy=None,
            open_timeout=PATIENCE,
            max_size=None,
            max_queue=None,
            **options,
        ) as connection:
            yield Socket(connection)

    def refusal(self, session_id: str, **options: Any) -> tuple[int, Event]:
        """The close code of a connect that is refused, and the one event before it."""
        with self.socket(session_id, **options) as socket:
            return socket.closing(), socket.hello

    # --- What only the operator can see ------------------------------------------------------------

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self.database.execute(query, values).fetchall()  # type: ignore[arg-type]

    def stored(self) -> dict[str, int]:
        """How many rows requests have made; what workers write about them is not counted."""
        tables = {
            "runs": "core_task WHERE action = 'agent.execute'",
            "sessions": "conversations_session",
            "questions": "conversations_message WHERE role = 'user'",
            "agents": "agents_agent",
            "versions": "agents_agentversion",
        }
        return {name: self.rows(f"SELECT count(*) FROM {table}")[0][0] for name, table in tables.items()}

    def forget_counts(self, limit: str) -> None:
        """Nobody has used up anything of the limits of that name."""
        for key in self.valkey.scan_iter(f"{ratelimits.ROOT}:{{{limit}/*"):
            self.valkey.delete(key)

    def shell(self, source: str) -> str:
        """The last line that the source prints in a process of the platform's own."""
        done = subprocess.run(
            [sys.executable, "manage.py", "shell", "--no-imports", "-c", source],
            cwd=ROOT,
            env=clean_environment() | {"NOOBLE_HOME": str(self.home)},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().rpartition("\n")[2]

    def children(self) -> list[int]:
        """The supervisor's children by pid: web, workers, beat."""
        return [child["pid"] for child in json.loads((self.home / "children.json").read_text())]

    @contextmanager
    def agents_paused(self) -> Iterator[None]:
        """The worker that runs agents stands still: what is asked meanwhile stays queued."""
        processes = [
            process
            for process in psutil.Process(self.pid).children(recursive=True)
            if any("agents@" in word for word in process.cmdline())
        ]
        assert processes
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()


def http_session() -> requests.Session:
    """One that a few threads can share and that no proxy of the environment diverts."""
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_maxsize=32))
    return session
