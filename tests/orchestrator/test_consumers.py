"""What a socket does with hints that come late, twice, or from elsewhere."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator

from core import aio
from core.events import log
from core.events.groups import session_name, tenant_name
from core.events.publisher import publish_to_tenant
from core.models import Tenant
from orchestrator.access import Resume
from orchestrator.events import Broadcast
from orchestrator.routing import websocket_urlpatterns

PATIENCE = 10  # seconds


class Socket:
    """An open socket of one session."""

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.session_id = f"s-{uuid.uuid4().hex}"
        self.group = session_name(tenant_id, self.session_id)
        self.wire: WebsocketCommunicator | None = None

    @asynccontextmanager
    async def opened(
        self, after: int | None = None, token: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Connect; gives the data of `connection_established`."""
        query = "" if after is None else f"?after={after}"
        protocols = ["nooble.v1", f"nooble.resume.{token}"] if token else []
        self.wire = WebsocketCommunicator(
            URLRouter(websocket_urlpatterns),
            f"/ws/{self.tenant_id}/{self.session_id}{query}",
            subprotocols=protocols,
        )
        assert (await self.wire.connect(PATIENCE))[0]
        established = await self.heard()
        assert established["event"] == "connection_established"
        try:
            yield established["data"]
        finally:
            await self.wire.disconnect(timeout=PATIENCE)

    async def heard(self) -> dict[str, Any]:
        assert self.wire is not None
        message: dict[str, Any] = await self.wire.receive_json_from(PATIENCE)
        return message

    async def seqs(self, number: int) -> list[int]:
        return [(await self.heard())["seq"] for _ in range(number)]

    def event(self, data: Any = None) -> Broadcast:
        return Broadcast(
            event="note",
            task_id=None,
            global_task_id=None,
            tenant_id=self.tenant_id,
            session_id=self.session_id,
            data=data or {},
        )

    async def append(self, number: int = 1) -> None:
        for _ in range(number):
            await log.append(self.event())

    async def hint(self, group: str | None = None, **fields: Any) -> None:
        """A hint as the log sends it, with some of it changed."""
        message = {
            "type": "session.event",
            "tenant_id": self.tenant_id,
            "session_id": self.session_id,
            "seq": 1,
            "text": '{"seq": "forged"}',
        }
        await get_channel_layer().group_send(group or self.group, message | fields)


Scenario = Callable[[Socket], Awaitable[None]]


@pytest.fixture
def play(committed_tenant: Tenant) -> Callable[[Scenario], None]:
    """Plays a scenario on the loop that the channel layer and the log live on."""

    def run(scenario: Scenario) -> None:
        aio.run(scenario(Socket(committed_tenant.pk)))

    return run


@pytest.fixture
def lose_hints(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Pub/sub is at most once: for a while, hints go nowhere."""

    def lose(lost: bool) -> None:
        if lost:
            monkeypatch.setattr(log, "pubsub_channel", lambda group: "nooble:test:nowhere")
        else:
            monkeypatch.undo()

    return lose


def test_events_arrive_in_order_once(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            await socket.append(5)
            assert await socket.seqs(5) == [1, 2, 3, 4, 5]

    play(scenario)


def test_a_gap_is_filled_from_the_log(
    play: Callable[[Scenario], None], lose_hints: Callable[[bool], None]
) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            await socket.append()
            lose_hints(True)
            await socket.append(3)
            lose_hints(False)
            await socket.append(2)
            assert await socket.seqs(6) == [1, 2, 3, 4, 5, 6]
            await socket.append()
            assert await socket.seqs(1) == [7]

    play(scenario)


def test_a_gap_longer_than_one_reading_is_filled_too(
    play: Callable[[Scenario], None], lose_hints: Callable[[bool], None]
) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            lose_hints(True)
            await socket.append(1_200)
            lose_hints(False)
            await socket.append()
            assert await socket.seqs(1_201) == list(range(1, 1_202))

    play(scenario)


def test_a_repeat_is_dropped(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            await socket.append(3)
            for seq in (1, 3, 2, 0):
                await socket.hint(seq=seq)
            await socket.append()
            assert await socket.seqs(4) == [1, 2, 3, 4]

    play(scenario)


@pytest.mark.parametrize("foreign", [{"tenant_id": "other"}, {"session_id": "s-other"}])
def test_an_event_of_another_tenant_or_session_is_ignored(
    play: Callable[[Scenario], None], foreign: dict[str, str]
) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            await socket.hint(**foreign, seq=1)
            await socket.hint(**foreign, seq=2)
            await socket.append(2)
            assert await socket.seqs(2) == [1, 2]

    play(scenario)


def test_another_tenants_broadcast_is_ignored(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            await socket.hint(
                group=tenant_name(socket.tenant_id), tenant_id="other", session_id=None, seq=None
            )
            await publish_to_tenant(socket.event({"n": 1}).model_copy(update={"session_id": None}))
            heard = await socket.heard()
            assert (heard["seq"], heard["data"]) == (None, {"n": 1})

    play(scenario)


def test_who_comes_back_gets_what_came_meanwhile_and_then_live(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened() as first:
            await socket.append(2)
            assert await socket.seqs(2) == [1, 2]
        await socket.append(3)
        async with socket.opened(after=2, token=first["resume_token"]) as again:
            assert again["last_seq"] == 5
            await socket.append()
            assert await socket.seqs(4) == [3, 4, 5, 6]

    play(scenario)


@pytest.mark.parametrize(("after", "expected"), [(0, [3, 4, 5]), (2, [3, 4, 5]), (4, [5]), (5, []), (99, [])])
def test_a_token_opens_nothing_earlier_than_its_seq(
    play: Callable[[Scenario], None], after: int, expected: list[int]
) -> None:
    async def scenario(socket: Socket) -> None:
        await socket.append(5)
        token = Resume(socket.tenant_id, socket.session_id, from_seq=2).token()
        async with socket.opened(after=after, token=token) as established:
            renewed = Resume.verify(established["resume_token"], socket.tenant_id, socket.session_id)
            assert renewed is not None
            assert renewed.from_seq == 2
            await socket.append()
            assert await socket.seqs(len(expected) + 1) == [*expected, 6]

    play(scenario)


def test_who_comes_without_a_token_hears_what_is_new(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        await socket.append(5)
        async with socket.opened() as established:
            assert established["last_seq"] == 5
            resume = Resume.verify(established["resume_token"], socket.tenant_id, socket.session_id)
            assert resume is not None
            assert resume.from_seq == 5
            await socket.append()
            assert await socket.seqs(1) == [6]

    play(scenario)


def test_the_text_is_the_logs_whether_it_came_live_or_from_the_gap(
    play: Callable[[Scenario], None], lose_hints: Callable[[bool], None]
) -> None:
    async def scenario(socket: Socket) -> None:
        texts = ["¿Qué tal? 🎈", "a\u2028\n\x00b"]
        async with socket.opened():
            lose_hints(True)
            await log.append(socket.event({"text": texts[0]}))
            lose_hints(False)
            await log.append(socket.event({"text": texts[1]}))
            heard = [await socket.heard() for _ in range(2)]
        kept = [json.loads(body) for _, body in await log.read(socket.group, 0)]
        assert [event["data"]["text"] for event in heard] == texts
        assert [{**event, "seq": None} for event in heard] == [{**event, "seq": None} for event in kept]

    play(scenario)
