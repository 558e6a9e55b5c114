"""A client that never gives up: it hears a session, comes back after every cut, and notes what is wrong."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from tests.acceptance.stack import PROTOCOL

Event = dict[str, Any]

REFUSALS = (4400, 4403, 4404, 4413)
LAST = ("task_completed", "task_failed", "cancelled")
# Of a session's last messages, how many are shown when something is wrong.
TRAIL = 8
RUN_ENDS = ("agent_execution_completed", "agent_execution_failed")


def told(event: Event) -> str:
    """The event's name, or the status that an update tells."""
    name: str = event["event"]
    return str(event["data"]["status"]) if name == "task_status_update" else name


def _brief(event: Event) -> str:
    """A message in a few words."""
    name, data, seq = event["event"], event.get("data") or {}, event.get("seq")
    if name == "agent_response_token":
        return f"{seq} token {data['offset']}+{len(data['token'])}"
    if name == "agent_execution_started":
        return f"{seq} started {data['attempt']}"
    if name == "task_status_update":
        return f"{seq} {data['status']} {data['details'].get('attempt', '')}"
    if name == "snapshot":
        running = data["running"]
        told = f"{running['attempt']}: {len(running['text'])} characters" if running else "nothing runs"
        return f"snapshot of {data['last_seq']} ({told}, {len(data['messages'])} messages)"
    if name == "connection_established":
        return f"connected at {data['last_seq']}"
    return f"{seq or ''} {name}".strip()


@dataclass
class Heard:
    """One task as a client knows it: its running answer, and every event of it as raw text."""

    attempt: int = 0
    started: bool = False
    text: str = ""
    run_end: str = ""
    final_text: str | None = None
    last: str = ""
    replaced: bool = False  # a snapshot stood for a part of its events
    doubles: list[str] = field(default_factory=list)  # closing events beyond the one of each kind
    raw: list[str] = field(default_factory=list)
    moments: dict[str, float] = field(default_factory=dict)  # of the first such event, monotonic
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, event: Event, raw: str) -> str:
        """Follow the event; what is wrong with it, in words, or nothing."""
        name, data = told(event), event["data"]
        self.raw.append(raw)
        if (name in LAST and self.last) or (name in RUN_ENDS and self.run_end):
            self.doubles.append(f"{name} after {self.last or self.run_end}")
            return ""
        if self.last:
            return f"{name} after {self.last}"
        if self.run_end and name not in LAST:
            return f"{name} after {self.run_end}"
        if name == "agent_execution_started":
            return self._start(data["attempt"])
        if name == "queued":
            return self._take_over(data["details"]["attempt"])
        if name == "agent_response_token":
            return self._grow(data["token"], data["offset"])
        if name in RUN_ENDS:
            return self._end_run(name, data)
        if name in LAST:
            return self._end(name, data)
        return "" if name == "cancelling" else f"an event of a kind that was not expected: {name}"

    def replace(self, task_id: str, snapshot: Event) -> None:
        """What a snapshot says of the task stands for all events of it so far.

        Its end, if the log had it, may be told once more.
        """
        if self.last or self.run_end:
            self.last, self.run_end, self.replaced = "", "", True
        running = snapshot["data"]["running"]
        if running is not None and running["task_id"] == task_id:
            self.attempt, self.started, self.text = running["attempt"], True, running["text"]
            self.replaced = True
        else:
            # Nothing of it is known any more: what follows must make the answer whole by itself.
            self.text, self.replaced = "", True
        for message in snapshot["data"]["messages"]:
            if message["role"] == "assistant" and message["task_id"] == task_id:
                # Whether its closing events follow is open.
                self.started, self.final_text, self.replaced = False, message["text"], True
                self.ended.set()

    def _start(self, attempt: int) -> str:
        if (self.started and attempt <= self.attempt) or attempt < self.attempt:
            return f"attempt {attempt} starts after {self.attempt}"
        self.attempt, self.started, self.text = attempt, True, ""
        self.moments.setdefault(f"started {attempt}", time.monotonic())
        return ""

    def _take_over(self, attempt: int) -> str:
        if attempt <= self.attempt:
            return f"a new attempt {attempt} after {self.attempt}"
        self.attempt, self.started = attempt, False
        return ""

    def _grow(self, token: str, offset: int) -> str:
        if not self.started:
            return "a token of an attempt that is over, or has not started"
        # A log that has lost the answer gets the whole of it again.
        again = offset == 0 and self.replaced
        wrong = "" if again or offset == len(self.text) else f"offset {offset} where {len(self.text)} was due"
        self.text = self.text[:offset] + token
        if token:
            self.moments.setdefault(f"token {self.attempt}", time.monotonic())
        return wrong

    def _end_run(self, name: str, data: dict[str, Any]) -> str:
        self.run_end = name
        if name == "agent_execution_completed":
            self.final_text = data["text"]
            if self.started and data["text"] != self.text:
                return f"completed with {data['text'][-40:]!r} after {self.text[-40:]!r}"
        return ""

    def _end(self, name: str, data: dict[str, Any]) -> str:
        self.last = name
        self.moments["last"] = time.monotonic()
        self.ended.set()
        if name == "task_completed" and self.final_text is not None and data["text"] != self.final_text:
            return f"task completed with {data['text'][-40:]!r}, its run with {self.final_text[-40:]!r}"
        due = {"task_completed": (RUN_ENDS[0],), "task_failed": (RUN_ENDS[1],)}
        # What is cancelled while it waits has only its last event.
        allowed = due.get(name, (RUN_ENDS[0],) if self.started else (RUN_ENDS[0], ""))
        return "" if self.run_end in allowed or self.replaced else f"{name} after {self.run_end or 'nothing'}"


@dataclass
class Session:
    """A socket on one session that comes back until it is stopped.

    `cut_after`, given, is asked before each connect: how many events until the socket is dropped, or None.
    """

    http: aiohttp.ClientSession
    base_url: str
    tenant_id: str
    session_id: str
    chance: random.Random
    jitter: float = 0.3
    cut_after: Callable[[], int | None] = lambda: None
    token: str = ""
    cursor: int | None = None  # None: not connected yet, and without a token of the past
    gaps: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    tasks: dict[str, Heard] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    closes: list[int] = field(default_factory=list)
    snapshots: list[Event] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)  # every event with a seq, in the order heard
    trail: deque[str] = field(default_factory=lambda: deque(maxlen=TRAIL))
    back: list[float] = field(default_factory=list)  # seconds from each cut until it was in again
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    _lost_at: float = 0.0
    socket: aiohttp.ClientWebSocketResponse | None = None

    def task(self, task_id: str) -> Heard:
        return self.tasks.setdefault(task_id, Heard())

    async def listen(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self._hear()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.counts[f"refused: {type(error).__name__}"] += 1
            if self.connected.is_set():
                self.connected.clear()
                self._lost_at = time.monotonic()
            await asyncio.sleep(self.chance.uniform(0, self.jitter))

    async def _hear(self) -> None:
        url = f"{self.base_url}/ws/{self.tenant_id}/{self.session_id}"
        protocols = (PROTOCOL, f"nooble.resume.{self.token}") if self.token else ()
        if self.token and self.cursor is not None:
            url += f"?after={self.cursor}"
        async with self.http.ws_connect(
            url, protocols=protocols, compress=0, max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=1)
        ) as socket:
            self.socket = socket
            left = self.cut_after()
            while True:
                message = await socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    self._closed(socket.close_code)
                    return
                event = orjson.loads(message.data)
                if event["event"] == "connection_established":
                    if self._lost_at:
                        self.back.append(time.monotonic() - self._lost_at)
                    self.connected.set()
                self.take(event, message.data)
                if left is not None and event.get("seq") is not None:
                    left -= 1
                    if left <= 0:
                        self.counts["cut"] += 1
                        self.cut()
                        return

    def cut(self) -> None:
        """The connection is reset, without a word."""
        connection = self.socket._response.connection if self.socket is not None else None
        if connection is not None and connection.transport is not None:
            connection.transport.abort()

    def _closed(self, code: int | None) -> None:
        self.closes.append(code or 1006)
        if code in REFUSALS:
            self.unexpected.append(f"{self.session_id}: closed with {code}")

    def take(self, event: Event, raw: str) -> None:
        """Follow one message of the server."""
        name = event["event"]
        self.counts[name] += 1
        self.trail.append(_brief(event))
        if name == "connection_established":
            self.token = event["data"]["resume_token"]
            if self.cursor is None:
                self.cursor = event["data"]["last_seq"]
        elif name == "snapshot":
            self._replace(event)
        elif name == "error":
            self.counts[f"error {event['data'].get('type')}"] += 1
        elif event.get("seq") is not None:
            self._follow(event, raw)

    def _follow(self, event: Event, raw: str) -> None:
        assert self.cursor is not None
        if event["seq"] != self.cursor + 1:
            due = self.cursor + 1
            self.gaps.append(f"{self.session_id}: not {due}; heard: {', '.join(self.trail)}")
        self.cursor = event["seq"]
        self.raw.append(raw)
        if (task_id := event["task_id"]) is not None:
            wrong = self.task(task_id).take(event, raw)
            if wrong:
                self.unexpected.append(f"{task_id}: {wrong}; heard: {', '.join(self.trail)}")

    def _replace(self, event: Event) -> None:
        """A snapshot stands for everything up to its `last_seq`."""
        data = event["data"]
        if self.cursor is not None and data["last_seq"] < self.cursor:
            self.gaps.append(f"{self.session_id}: {self.cursor}, then a snapshot of {data['last_seq']}")
        self.cursor = data["last_seq"]
        self.snapshots.append(event)
        shown = {message["task_id"] for message in data["messages"] if message["role"] == "assistant"}
        if data["running"] is not None:
            shown.add(data["running"]["task_id"])
        for task_id in shown.union(self.tasks) - {None}:
            self.task(task_id).replace(task_id, event)
