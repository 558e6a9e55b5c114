"""Streams of several tenants side by side, whose clients vanish half-way: nobody hears a foreign token."""

from __future__ import annotations

import asyncio
import json
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest_asyncio

from tests.acceptance.stack import PROTOCOL
from tests.chaos.conftest import SEED
from tests.chaos.rig import Rig
from tests.chaos.sizes import sized

TENANTS = 5
TIMES = 40  # that a question names its owner
SECONDS = 300.0
VANISH = 0.5  # of the clients, in the middle of an answer; most of them come back
MARK = re.compile(r"of[0-9a-f]{16}")

# Tenants that may run as much as they like; prints (id, key) of each.
MAKE = """
import json
from core.models import ApiKey, Tenant, Tier
from core.models.access import SCOPES

tier = Tier.objects.create(slug="isolated-{run}", name="Isolated", **Tier.UNLIMITED | {{"max_running": 1000}})
made = []
for number in range({count}):
    name = f"isolated-{run}-{{number}}"
    tenant = Tenant.objects.create(id=name, name=name, tier=tier)
    key = ApiKey(tenant=tenant, name="chaos", scopes=list(SCOPES))
    made.append((name, key.mint()))
    key.save()
print(json.dumps(made))
"""


@dataclass
class Stream:
    """One question and everything that its client ever heard."""

    tenant_id: str
    key: str
    agent_id: str
    chance: random.Random
    mark: str = field(default_factory=lambda: f"of{secrets.token_hex(8)}")
    pieces: list[tuple[int, str]] = field(default_factory=list)  # (offset, text)
    raw: list[str] = field(default_factory=list)
    vanished: int = 0
    whole: bool = False

    @property
    def question(self) -> str:
        return " ".join([self.mark] * TIMES)

    def gives_up(self) -> Callable[[], bool]:
        """Asked after each piece: whether the client vanishes now."""
        left = self.chance.randint(2, 12) if self.chance.random() < VANISH else -1

        def now() -> bool:
            nonlocal left
            left -= 1
            return left == 0

        return now

    def vanish(self, response: Any) -> None:
        self.vanished += 1
        connection = response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()


@dataclass
class Clients:
    rig: Rig
    http: aiohttp.ClientSession

    async def ask(self, stream: Stream, session_id: str) -> dict[str, Any]:
        body = {"agent_id": stream.agent_id, "message": stream.question, "session_id": session_id}
        async with self.http.post(f"{self.rig.base_url}/api/v1/chat/message", json=body) as response:
            assert response.status == 202, await response.text()
            result: dict[str, Any] = (await response.json())["result"]
        return result

    def take(self, stream: Stream, text: str) -> bool:
        """One event; whether it is the last of its task."""
        stream.raw.append(text)
        event = json.loads(text)
        if event["event"] == "agent_response_token":
            stream.pieces.append((event["data"]["offset"], event["data"]["token"]))
        if event["event"] == "snapshot" and event["data"]["running"]:
            stream.pieces.append((0, event["data"]["running"]["text"]))
        return event["event"] == "task_completed"

    async def by_socket(self, stream: Stream) -> None:
        session_id, token, cursor = f"i-{secrets.token_hex(8)}", "", None
        asked: asyncio.Task[Any] | None = None
        gives_up = stream.gives_up()
        while not stream.whole:
            url = f"{self.rig.base_url}/ws/{stream.tenant_id}/{session_id}"
            protocols = (PROTOCOL, f"nooble.resume.{token}") if token else ()
            if cursor is not None:
                url += f"?after={cursor}"
            async with self.http.ws_connect(url, protocols=protocols, compress=0, max_msg_size=0) as socket:
                async for message in socket:
                    event = json.loads(message.data)
                    if event["event"] == "connection_established":
                        token = event["data"]["resume_token"]
                        if cursor is None:
                            cursor = event["data"]["last_seq"]
                            asked = asyncio.create_task(self.ask(stream, session_id))
                    elif event["event"] == "snapshot":
                        cursor = event["data"]["last_seq"]
                    elif event.get("seq") is not None:
                        cursor = event["seq"]
                    if self.take(stream, message.data):
                        stream.whole = True
                        break
                    if event["event"] == "agent_response_token" and gives_up():
                        stream.vanish(socket._response)
                        break
        assert asked is not None
        await asked

    async def by_events(self, stream: Stream) -> None:
        """Server-Sent Events."""
        result = await self.ask(stream, f"i-{secrets.token_hex(8)}")
        url, last = f"{self.rig.base_url}/api/v1/chat/stream/{result['task_id']}", "0"
        gives_up = stream.gives_up()
        while not stream.whole:
            async with self.http.get(url, headers={"Last-Event-ID": last}) as response:
                assert response.status == 200
                try:
                    async for line in response.content:
                        name, _, value = line.decode().strip().partition(": ")
                        if name == "id":
                            last = value
                        if name != "data":
                            continue
                        if self.take(stream, value):
                            stream.whole = True
                            break
                        if "agent_response_token" in value and gives_up():
                            stream.vanish(response)
                            break
                except aiohttp.ClientError:
                    pass

    async def by_polling(self, stream: Stream) -> None:
        result = await self.ask(stream, f"i-{secrets.token_hex(8)}")
        url = f"{self.rig.base_url}/api/v1/chat/status/{result['task_id']}"
        while not stream.whole:
            async with self.http.get(url) as response:
                text = await response.text()
            stream.raw.append(text)
            state = json.loads(text)["result"]
            assert state["status"] not in ("failed", "cancelled"), text
            if state["status"] == "completed":
                stream.pieces.append((0, state["output"]["text"]))
                stream.whole = True
            await asyncio.sleep(0.2)

    async def by_completion(self, stream: Stream) -> None:
        """Who vanishes here does not come back: the run is cancelled."""
        messages = [{"role": "user", "content": stream.question}]
        body = {"model": stream.agent_id, "messages": messages, "stream": True}
        headers = {"Authorization": f"Bearer {stream.key}"}
        url, gives_up, offset = f"{self.rig.base_url}/v1/chat/completions", stream.gives_up(), 0
        async with self.http.post(url, json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                _, _, value = line.decode().strip().partition("data: ")
                if value == "[DONE]":
                    stream.whole = True
                if not value or value == "[DONE]":
                    continue
                stream.raw.append(value)
                choices = json.loads(value)["choices"]
                text = choices[0]["delta"].get("content") if choices else None
                if text:
                    stream.pieces.append((offset, text))
                    offset += len(text)
                    if gives_up():
                        stream.vanish(response)
                        return


@pytest_asyncio.fixture
async def clients(rig: Rig) -> AsyncIterator[Clients]:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    # What the scenario before has asked to go may go only now.
    async with rig.supervised(), aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        await rig.as_usual()
        yield Clients(rig, http)


async def agent_of(clients: Clients, key: str) -> str:
    """It says what it was told: so its answer names its owner."""
    model = f"fake-echo?interval=0.02&mark={secrets.token_hex(4)}"
    body = {"name": "Echo", "type": "chaos", "config": {"provider": "openai", "model": model}}
    headers = {"Authorization": f"Bearer {key}"}
    async with clients.http.post(
        f"{clients.rig.base_url}/api/v1/agents", json=body, headers=headers
    ) as response:
        assert response.status == 201, await response.text()
        agent_id: str = (await response.json())["agent_id"]
    return agent_id


async def test_nobody_hears_a_foreign_token(
    rig: Rig, clients: Clients, report: Callable[[dict[str, Any]], None]
) -> None:
    """I9: 500 streams of five tenants, in four ways; half of the clients vanish in the middle of it."""
    chance, begun = random.Random(SEED), time.monotonic()
    made = json.loads(rig.shell(MAKE.format(run=secrets.token_hex(4), count=TENANTS)))
    agents = [(tenant, key, await agent_of(clients, key)) for tenant, key in made]
    ways = (clients.by_socket, clients.by_events, clients.by_polling, clients.by_completion)
    streams, heard = [], []
    for number in range(sized(60, 500)):
        stream = Stream(*agents[number % TENANTS], chance=random.Random(chance.getrandbits(64)))
        streams.append(stream)
        heard.append(ways[number // TENANTS % len(ways)](stream))
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*heard)

    # What the model was told is what it says; each question reached it in its own conversation.
    said: dict[str, str] = {}
    foreign: Counter[str] = Counter()
    mine = {stream.mark for stream in streams}
    for entry in rig.books():
        marks = set(MARK.findall(json.dumps(entry["messages"]))) & mine
        foreign["questions"] += len(marks) > 1
        said |= {mark: json.dumps(entry["messages"], ensure_ascii=False) for mark in marks}
    for stream in streams:
        others = mine - {stream.mark}
        foreign["events"] += sum(bool(others & set(MARK.findall(text))) for text in stream.raw)
        foreign["tokens"] += sum(
            said[stream.mark][offset : offset + len(text)] != text for offset, text in stream.pieces
        )
        foreign["tenants"] += any(
            tenant in text for tenant, _key in made if tenant != stream.tenant_id for text in stream.raw
        )
    stored = rig.rows(
        "SELECT m.tenant_id, m.text FROM conversations_message m WHERE m.tenant_id = ANY(%s)",
        [tenant for tenant, _key in made],
    )
    owners = {stream.mark: stream.tenant_id for stream in streams}
    for tenant_id, text in stored:
        foreign["stored"] += any(owners.get(mark) != tenant_id for mark in set(MARK.findall(text)))
    report(
        {
            "scenario": "I9 mixed streams",
            "seed": SEED,
            "streams": len(streams),
            "vanished": sum(stream.vanished for stream in streams),
            "whole": sum(stream.whole for stream in streams),
            "tokens": sum(len(stream.pieces) for stream in streams),
            "stored": len(stored),
            "seconds": round(time.monotonic() - begun, 1),
            **{f"foreign_{name}": count for name, count in foreign.items()},
        }
    )
    assert +foreign == Counter()
    assert all(stream.whole or stream.vanished for stream in streams)
    assert sum(stream.vanished for stream in streams) > len(streams) / 8
    assert all(stream.pieces for stream in streams)
