"""Turns of a conversation, driven by many clients at once and measured."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from bench.processes import Costs
from execution.messages import ChatMessage, ModelRequest, TextDelta
from execution.providers.base import Provider, ProviderError

# Seconds; a turn that takes longer has failed.
TURN_SECONDS = 60.0
# Failures after which a level is given up.
_TOO_MANY = 20


class TurnFailed(Exception):
    """A turn that did not give the expected answer."""


@dataclass(slots=True)
class Turn:
    """One question and its answer. All times are the wall clock's seconds."""

    mark: str
    asked_at: float
    finished_at: float = 0.0
    frames: list[tuple[float, int]] = field(default_factory=list)  # arrival, tokens in it


@dataclass(frozen=True)
class Level:
    """What was measured with one number of clients. Times in seconds, memory in bytes."""

    clients: int
    rate: float
    first_token: tuple[float, float]  # median, 95th percentile
    token_delay: tuple[float, float]
    frames: float
    cpu: dict[str, float]
    memory: dict[str, int]
    turns: int
    failures: list[str]


class Platform:
    """A client of the running platform."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        tenant_id: str,
        api_key: str,
        expected: str,
    ) -> None:
        self._session = session
        self._base_url = base_url
        self._tenant_id = tenant_id
        self._api_key = api_key
        self._expected = expected
        self._agent_id = ""

    async def make_agent(self, model: str) -> None:
        """The agent that all turns ask."""
        body = {"name": "Bench", "type": "bench", "config": {"provider": "openai", "model": model}}
        headers = {"Authorization": f"Bearer {self._api_key}"}
        async with self._session.post(
            f"{self._base_url}/api/v1/agents", json=body, headers=headers
        ) as response:
            if response.status != 201:
                raise TurnFailed(f"no agent: {response.status} {await response.text()}")
            self._agent_id = (await response.json())["agent_id"]

    async def turn(self, asked: asyncio.Event | None = None) -> Turn:
        """One turn in a session of its own: socket, question, events until the task is completed.

        `asked` is set when the question has been accepted.
        """
        session_id = secrets.token_urlsafe(16)
        url = f"{self._base_url}/ws/{self._tenant_id}/{session_id}"
        async with self._session.ws_connect(url, compress=0) as socket:
            first = orjson.loads(await socket.receive_str())
            if first["event"] != "connection_established":
                raise TurnFailed(f"instead of connection_established: {first}")
            turn = Turn(mark=session_id, asked_at=time.time())
            # The answer may begin before the POST's own answer is here.
            asking = asyncio.create_task(self.ask(session_id))
            if asked is not None:
                asking.add_done_callback(lambda _: asked.set())
            try:
                await self._listen(socket, turn)
                await asking
            finally:
                asking.cancel()
        return turn

    async def ask(self, session_id: str) -> None:
        """Put the question; nobody waits for the answer here."""
        body = {
            "agent_id": self._agent_id,
            "session_id": session_id,
            "message": f"Please answer. {session_id}",
        }
        async with self._session.post(f"{self._base_url}/api/v1/chat/message", json=body) as response:
            if response.status != 202:
                raise TurnFailed(f"the message was not accepted: {response.status} {await response.text()}")

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse, turn: Turn) -> None:
        text = ""
        seq = 0
        while True:
            message = await socket.receive()
            now = time.time()
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise TurnFailed(f"the socket ended: {message.type.name} {message.data}")
            event = orjson.loads(message.data)
            name, data = event["event"], event.get("data") or {}
            if "seq" in event:
                seq += 1
                if event["seq"] != seq:
                    raise TurnFailed(f"event {event['seq']} came where {seq} was due")
            if name == "agent_response_token":
                if data["offset"] != len(text):
                    raise TurnFailed(f"offset {data['offset']} after {len(text)} characters")
                text += data["token"]
                turn.frames.append((now, data["token"].count("tok")))
            elif name == "agent_execution_completed" and data["text"] != self._expected:
                raise TurnFailed(f"another final text: {data['text'][:200]!r}")
            elif name == "task_completed":
                if text != self._expected:
                    raise TurnFailed(f"another streamed text: {text[:200]!r}")
                turn.finished_at = now
                return
            elif name in ("agent_execution_failed", "task_failed", "error"):
                raise TurnFailed(f"{name}: {data}")


class Direct:
    """The same question to the model itself."""

    def __init__(self, provider: Provider, model: str, expected: str) -> None:
        self._provider = provider
        self._model = model
        self._expected = expected

    async def turn(self) -> Turn:
        mark = secrets.token_urlsafe(16)
        turn = Turn(mark=mark, asked_at=time.time())
        text = ""
        request = ModelRequest(self._model, (ChatMessage("user", f"Please answer. {mark}"),))
        async for event in self._provider.stream(request):
            if isinstance(event, TextDelta):
                turn.frames.append((time.time(), 1))
                text += event.text
        turn.finished_at = time.time()
        if text != self._expected:
            raise TurnFailed(f"another text from the model: {text[:200]!r}")
        return turn


class Books:
    """When the fake model sent what."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, interval: float) -> None:
        self._session = session
        self._url = base_url.removesuffix("/v1") + "/_books"
        self._interval = interval

    async def forget(self) -> None:
        async with self._session.delete(self._url) as response:
            response.raise_for_status()

    async def requests(self) -> dict[str, dict[str, Any]]:
        """What is written about each turn's request, by the turn's mark."""
        async with self._session.get(self._url) as response:
            requests = orjson.loads(await response.read())["requests"]
        return {
            request["messages"][-1]["content"].rpartition(" ")[2]: request
            for request in requests
            if request["messages"]
        }

    async def delays(self, turns: list[Turn]) -> list[float]:
        """Seconds from each token's place in the model's schedule to its arrival."""
        began = {mark: request["first_token_at"] for mark, request in (await self.requests()).items()}
        result = []
        for turn in turns:
            due = began[turn.mark]
            for arrived_at, tokens in turn.frames:
                for _ in range(tokens):
                    result.append(arrived_at - due)
                    due += self._interval
        return result


async def measure(
    take_turn: Callable[[], Awaitable[Turn]],
    clients: int,
    *,
    costs: Costs,
    books: Books,
    warm_up: float,
    seconds: float,
    spread: float,
) -> Level:
    """So many clients take turns without pause; those that end in the window of `seconds` count.

    They begin within `spread` seconds of each other, so that their turns do not run in step.
    """
    await books.forget()
    turns: list[Turn] = []
    failures: list[str] = []
    stopping = asyncio.Event()

    async def client(number: int) -> None:
        await asyncio.sleep(spread * number / clients)
        while not stopping.is_set() and len(failures) < _TOO_MANY:
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    turns.append(await take_turn())
            except (
                TurnFailed,
                ProviderError,
                TimeoutError,
                aiohttp.ClientError,
                KeyError,
                ValueError,
            ) as error:
                failures.append(f"{type(error).__name__}: {error}")

    running = [asyncio.create_task(client(number)) for number in range(clients)]
    await asyncio.sleep(warm_up + spread)
    cpu_before, began_at = costs.cpu(), time.time()
    await asyncio.sleep(seconds)
    cpu_after, ended_at = costs.cpu(), time.time()
    memory = costs.memory()
    stopping.set()
    await asyncio.gather(*running)

    counted = [turn for turn in turns if began_at <= turn.finished_at < ended_at]
    if not counted:
        return Level(
            clients, 0.0, (0.0, 0.0), (0.0, 0.0), 0.0, {}, memory, 0, failures or ["no turn ended in time"]
        )
    first_tokens = [turn.frames[0][0] - turn.asked_at for turn in counted]
    return Level(
        clients=clients,
        rate=len(counted) / (ended_at - began_at),
        first_token=median_and_95(first_tokens),
        token_delay=median_and_95(await books.delays(counted)),
        frames=statistics.fmean(len(turn.frames) for turn in counted),
        cpu={name: (spent - cpu_before.get(name, 0.0)) / len(counted) for name, spent in cpu_after.items()},
        memory=memory,
        turns=len(counted),
        failures=failures,
    )


def median_and_95(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
