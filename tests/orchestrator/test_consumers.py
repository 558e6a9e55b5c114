"""What a socket does with hints that come late, twice, or from elsewhere."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
import redis.asyncio
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.db import OperationalError
from django.test import Client

from conversations.models import Session
from core import aio, valkey
from core.actions.bus import execute
from core.events import log
from core.events.groups import session_name, tenant_name
from core.events.publisher import publish_to_tenant
from core.models import Task, Tenant
from core.tenancy import tenant_scope
from orchestrator import consumers
from orchestrator.access import Resume
from orchestrator.actions import ChatSendMessageAction
from orchestrator.events import Broadcast
from orchestrator.routing import websocket_urlpatterns
from orchestrator.sockets import census
from orchestrator.sockets import keeper as keepers
from orchestrator.sockets import socket as sockets
from orchestrator.sockets.inbox import BURST, MAX_FRAME
from orchestrator.sockets.link import EXTENSION, Link
from tests.factories import make_agent, make_message, make_session, make_task

PATIENCE = 10  # seconds


class Socket:
    """An open socket of one session."""

    def __init__(self, tenant_id: str, session_id: str | None = None) -> None:
        self.tenant_id = tenant_id
        self.session_id = session_id or f"s-{uuid.uuid4().hex}"
        self.group = session_name(tenant_id, self.session_id)
        self.wire: WebsocketCommunicator | None = None

    @asynccontextmanager
    async def opened(
        self, after: int | None = None, token: str | None = None, link: Link | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Connect; gives the data of `connection_established`. `link` is what a server of ours would tell."""
        query = "" if after is None else f"?after={after}"
        protocols = ["nooble.v1", f"nooble.resume.{token}"] if token else []
        self.wire = WebsocketCommunicator(
            URLRouter(websocket_urlpatterns),
            f"/ws/{self.tenant_id}/{self.session_id}{query}",
            subprotocols=protocols,
        )
        if link is not None:
            self.wire.scope["extensions"] = {EXTENSION: link}
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

    async def snapshot(self) -> dict[str, Any]:
        """What the next message says, which must be a snapshot, with the texts of its messages only."""
        message = await self.heard()
        assert message["event"] == "snapshot"
        assert "seq" not in message
        data: dict[str, Any] = message["data"]
        return {"texts": [item["text"] for item in data.pop("messages")], **data}

    async def refused(self) -> tuple[str, int]:
        """The type of the error event, and the code of the close that follows it."""
        assert self.wire is not None
        return await refusal(self.wire)

    async def sent_away(self) -> None:
        """The socket is told to come back, and closed."""
        assert self.wire is not None
        assert await self.heard() == {"event": "reconnect"}
        assert await self.wire.receive_output(PATIENCE) == {"type": "websocket.close", "code": 1012}

    async def say(self, **frame: Any) -> None:
        assert self.wire is not None
        await self.wire.send_json_to(frame)

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
            await log.append(self.event(), floor=0)

    async def lose_log(self) -> None:
        """Valkey forgets the session, as after a day of silence."""
        assert await valkey.async_client().delete(log._log(self.group), log._marks(self.group))

    async def trim_log(self, keep: int) -> None:
        """The log forgets all but its newest events."""
        assert await valkey.async_client().xtrim(log._log(self.group), maxlen=keep, approximate=False)

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


@pytest.mark.parametrize(("after", "expected"), [(0, [3, 4, 5]), (2, [3, 4, 5]), (4, [5]), (5, [])])
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
            await log.append(socket.event({"text": texts[0]}), floor=0)
            lose_hints(False)
            await log.append(socket.event({"text": texts[1]}), floor=0)
            heard = [await socket.heard() for _ in range(2)]
        kept = [json.loads(body) for _, body in await log.read(socket.group, 0)]
        assert [event["data"]["text"] for event in heard] == texts
        assert [{**event, "seq": None} for event in heard] == [{**event, "seq": None} for event in kept]

    play(scenario)


@pytest.fixture
def session(committed_tenant: Tenant) -> Session:
    """A session with a past: a question and its answer, whose last frame was seq 5. Its log is lost."""
    session = make_session(make_agent(committed_tenant))
    valkey.client().delete(log._marks(session_name(session.tenant_id, session.key)))
    task = make_task(committed_tenant)
    make_message(session, "user", "an old question", task, seq=0)
    make_message(session, "assistant", "an old answer", task, seq=5)
    return session


def established(socket: Socket, **offer: Any) -> dict[str, Any]:
    """What the session's socket is told at connect."""

    async def connect() -> dict[str, Any]:
        async with socket.opened(**offer) as data:
            return data

    return aio.run(connect())


def texts_for(token: str, session: Session) -> list[str]:
    """What the client reads of the session's past with its token."""
    path = f"/api/v1/sessions/{session.key}/messages"
    response = Client().get(path, headers={"nooble-resume": token})
    assert response.status_code == 200
    return [item["text"] for item in response.json()["items"]]


def ask(session: Session, text: str) -> None:
    with tenant_scope(session.tenant_id):
        execute(ChatSendMessageAction(agent_id=session.agent_id, session_id=session.key, message=text))


@pytest.mark.parametrize("lost", ["never begun", "forgotten"])
def test_who_comes_after_the_log_was_lost_cannot_read_what_was_before(session: Session, lost: str) -> None:
    socket = Socket(session.tenant_id, session.key)
    if lost == "forgotten":
        aio.run(socket.append(7))
        aio.run(socket.lose_log())
    data = established(socket)
    resume = Resume.verify(data["resume_token"], session.tenant_id, session.key)
    assert resume is not None
    assert data["last_seq"] == resume.from_seq == 5 + log.GAP
    assert texts_for(data["resume_token"], session) == []
    ask(session, "a new question")
    assert texts_for(data["resume_token"], session) == ["a new question"]
    whole = Resume(session.tenant_id, session.key, from_seq=0).token()
    assert texts_for(whole, session) == ["an old question", "an old answer", "a new question"]


def test_who_comes_after_a_lost_log_to_a_session_with_one_question_cannot_read_it(
    committed_tenant: Tenant,
) -> None:
    session = make_session(make_agent(committed_tenant))
    ask(session, "the only question")
    socket = Socket(session.tenant_id, session.key)
    aio.run(socket.append(3))
    aio.run(socket.lose_log())
    data = established(socket)
    assert data["last_seq"] >= 3
    assert texts_for(data["resume_token"], session) == []


def test_who_comes_back_after_the_log_was_lost_hears_and_reads_on(session: Session) -> None:
    socket = Socket(session.tenant_id, session.key)
    token = Resume(session.tenant_id, session.key, from_seq=5).token()

    async def scenario() -> None:
        async with socket.opened(after=7, token=token) as data:
            assert data["last_seq"] == 5 + log.GAP
            assert await socket.snapshot() == {
                "texts": ["an old answer"],
                "running": None,
                "last_seq": 5 + log.GAP,
            }
            await socket.append(2)
            assert await socket.seqs(2) == [5 + log.GAP + 1, 5 + log.GAP + 2]

    aio.run(scenario())
    assert texts_for(established(socket, after=7, token=token)["resume_token"], session) == ["an old answer"]


def test_connecting_to_a_new_session_begins_no_log(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened() as data:
            assert data["last_seq"] == 0
            assert await log.last_seq(socket.group) is None

    play(scenario)


async def refusal(wire: WebsocketCommunicator) -> tuple[str, int]:
    """The type of the error event and the code of the close that follows it."""
    event = await wire.receive_json_from(PATIENCE)
    assert event["event"] == "error"
    closed = await wire.receive_output(PATIENCE)
    assert closed["type"] == "websocket.close"
    return event["data"]["type"], closed["code"]


ON_THE_WAY = [{"action": "ping"}, {"action": "nothing"}, {"action": "chat.get_status", "task_id": "x"}]


@pytest.mark.parametrize(
    ("protocols", "query", "first", "expected"),
    [
        (["nooble.v1", "nooble.resume.forged"], "", None, ("PermissionRefused", 4403)),
        (["other"], "", None, ("ValidationFailed", 4400)),
        ([], "?after=x", None, ("ValidationFailed", 4400)),
        ([], "", {"bytes_data": b"x"}, ("MalformedRequest", 4400)),
        ([], "", {"text_data": "x" * (MAX_FRAME + 1)}, ("BodyTooLarge", 4413)),
    ],
)
def test_a_refused_socket_executes_nothing_that_was_on_the_way(
    committed_tenant: Tenant,
    protocols: list[str],
    query: str,
    first: dict[str, Any] | None,
    expected: tuple[str, int],
) -> None:
    agent = make_agent(committed_tenant)

    async def scenario() -> None:
        path = f"/ws/{committed_tenant.pk}/s-refused{query}"
        wire = WebsocketCommunicator(URLRouter(websocket_urlpatterns), path, subprotocols=protocols)
        assert (await wire.connect(PATIENCE))[0]
        if first is not None:
            assert (await wire.receive_json_from(PATIENCE))["event"] == "connection_established"
            await wire.send_to(**first)
        send = {"action": "chat.send_message", "agent_id": str(agent.pk), "message": "Hello?"}
        for frame in (*ON_THE_WAY, send):
            await wire.send_json_to(frame)
        assert await refusal(wire) == expected
        await wire.disconnect(timeout=PATIENCE)
        assert wire.output_queue.empty()

    aio.run(scenario())
    assert not Task.unscoped.exists()
    assert not Session.unscoped.exists()


async def async_away(*args: Any) -> Any:
    raise redis.ConnectionError("away")


def database_away(*args: Any) -> Any:
    raise OperationalError("away")


@pytest.mark.parametrize("service", ["the channel layer", "the log", "the limits", "the session"])
def test_a_service_that_is_away_at_connect_is_told_and_closes_the_socket(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    async def scenario(socket: Socket) -> None:
        match service:
            case "the channel layer":
                monkeypatch.setattr(get_channel_layer(), "group_add", async_away)
            case "the log":
                monkeypatch.setattr(log, "tails", async_away)
            case "the limits":
                monkeypatch.setattr(consumers, "tenant_limits", database_away)
            case "the session":
                monkeypatch.setattr(consumers, "session_seq", database_away)
        path = f"/ws/{socket.tenant_id}/{socket.session_id}"
        wire = WebsocketCommunicator(URLRouter(websocket_urlpatterns), path)
        assert (await wire.connect(PATIENCE))[0]
        assert await refusal(wire) == ("ServiceUnavailable", 1013)
        await wire.send_json_to({"action": "ping"})
        await wire.disconnect(timeout=PATIENCE)
        assert wire.output_queue.empty()

    play(scenario)


def test_valkey_that_is_away_from_the_first_byte_to_the_last(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer and a client of our own, that lead to an address where nobody listens."""

    async def scenario(socket: Socket) -> None:
        nowhere = "unix:///nonexistent/valkey.sock"
        layer = RedisPubSubChannelLayer(hosts=[{"address": nowhere}])
        client = redis.asyncio.Redis.from_url(nowhere)
        monkeypatch.setattr(sockets, "get_channel_layer", lambda: layer)
        monkeypatch.setattr(log.valkey, "async_client", lambda: client)
        path = f"/ws/{socket.tenant_id}/{socket.session_id}"
        wire = WebsocketCommunicator(URLRouter(websocket_urlpatterns), path, subprotocols=["nooble.v1"])
        assert await wire.connect(PATIENCE) == (True, "nooble.v1")
        assert await refusal(wire) == ("ServiceUnavailable", 1013)
        await wire.disconnect(timeout=PATIENCE)

    play(scenario)


@pytest.mark.parametrize(
    ("offered", "picked"),
    [(["nooble.v1"], "nooble.v1"), (["other", "nooble.v1"], "nooble.v1"), (["other"], None), ([], None)],
)
@pytest.mark.parametrize("path", ["/", "/ws", "/ws/demo", "/ws/demo/s-1/more"])
def test_an_unknown_address_speaks_our_protocol_and_says_so(
    path: str, offered: list[str], picked: str | None
) -> None:
    async def scenario() -> None:
        wire = WebsocketCommunicator(URLRouter(websocket_urlpatterns), path, subprotocols=offered)
        assert await wire.connect(PATIENCE) == (True, picked)
        assert await refusal(wire) == ("NotFound", 4404)
        await wire.disconnect(timeout=PATIENCE)

    aio.run(scenario())


# --- Lost hints, lost logs ---------------------------------------------------------------------------


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper looks at the tails all the time."""
    monkeypatch.setattr(keepers, "TAILS_SECONDS", 0.0)


@pytest.mark.usefixtures("quick_looks")
def test_the_last_message_is_heard_though_its_hint_was_lost(
    play: Callable[[Scenario], None], lose_hints: Callable[[bool], None]
) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            await socket.append()
            lose_hints(True)
            await socket.append(3)
            assert await socket.seqs(4) == [1, 2, 3, 4]

    play(scenario)


@pytest.mark.parametrize("after", [6, 99])
def test_who_is_ahead_of_the_log_gets_a_snapshot(play: Callable[[Scenario], None], after: int) -> None:
    async def scenario(socket: Socket) -> None:
        await socket.append(5)
        token = Resume(socket.tenant_id, socket.session_id, from_seq=2).token()
        async with socket.opened(after=after, token=token):
            assert await socket.snapshot() == {"texts": [], "running": None, "last_seq": 5}
            await socket.append()
            assert await socket.seqs(1) == [6]

    play(scenario)


@pytest.mark.parametrize("after", [0, 1])
def test_who_is_behind_the_log_gets_a_snapshot(play: Callable[[Scenario], None], after: int) -> None:
    async def scenario(socket: Socket) -> None:
        await socket.append(9)
        await socket.trim_log(keep=3)
        token = Resume(socket.tenant_id, socket.session_id, from_seq=0).token()
        async with socket.opened(after=after, token=token):
            assert await socket.snapshot() == {"texts": [], "running": None, "last_seq": 9}
            await socket.append()
            assert await socket.seqs(1) == [10]
        async with socket.opened(after=7, token=token):
            assert await socket.seqs(3) == [8, 9, 10]

    play(scenario)


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("told", ["by a hint", "by nobody"])
def test_a_log_that_is_lost_under_an_open_socket(session: Session, told: str) -> None:
    """What the token opens of the session's past comes again, and then the new log."""
    socket = Socket(session.tenant_id, session.key)

    async def scenario() -> None:
        await socket.append(7)
        token = Resume(session.tenant_id, session.key, from_seq=0).token()
        async with socket.opened(after=7, token=token):
            await socket.lose_log()
            if told == "by a hint":
                await log.append(socket.event(), floor=7)
            stands = await socket.snapshot()
            assert stands["texts"] == ["an old question", "an old answer"]
            assert stands["last_seq"] > 7
            await log.append(socket.event(), floor=7)
            while (await socket.heard())["seq"] != await log.last_seq(socket.group):
                pass

    aio.run(scenario())


# --- Readers that are slow ---------------------------------------------------------------------------


class Reader(Link):
    """The link of a server whose client reads when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self._reads = asyncio.Event()
        self._reads.set()
        self.stalled = False

    def stop(self) -> None:
        self.full = True
        self._reads.clear()

    def go_on(self) -> None:
        self.full = False
        self._reads.set()

    def is_stalled(self, seconds: float) -> bool:
        return self.stalled

    async def drained(self) -> None:
        await self._reads.wait()


def test_a_slow_reader_is_sent_nothing_and_then_everything(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        reader = Reader()
        async with socket.opened(link=reader):
            await socket.append()
            assert await socket.seqs(1) == [1]
            reader.stop()
            await socket.append(100)
            await publish_to_tenant(socket.event().model_copy(update={"session_id": None}))
            assert socket.wire is not None
            assert await socket.wire.receive_nothing()
            reader.go_on()
            assert await socket.seqs(100) == list(range(2, 102))
            await socket.append()
            assert await socket.seqs(1) == [102]

    play(scenario)


def test_a_reader_that_stalls_is_refused(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        reader = Reader()
        async with socket.opened(link=reader):
            reader.stop()
            reader.stalled = True
            assert await socket.refused() == ("SlowReader", 4409)

    play(scenario)


def test_a_reader_that_does_not_read_its_answers_gets_no_more_of_them(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(socket: Socket) -> None:
        reader = Reader()
        async with socket.opened(link=reader):
            reader.stop()
            await socket.say(action="ping")
            assert socket.wire is not None
            assert await socket.wire.receive_nothing()
            reader.go_on()
            assert await socket.heard() == {"event": "pong"}

    play(scenario)


# --- What clients say --------------------------------------------------------------------------------


@pytest.fixture
def slow_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No action of a client ends before the event is set."""
    ready = threading.Event()
    act = consumers.SessionConsumer._act

    def slowly(*args: Any) -> Any:
        assert ready.wait(PATIENCE)
        return act(*args)

    monkeypatch.setattr(consumers.SessionConsumer, "_act", slowly)
    yield ready
    ready.set()


def test_a_slow_action_holds_up_no_events(
    play: Callable[[Scenario], None], slow_database: threading.Event
) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            for action_id in ("first", "second"):
                await socket.say(action="chat.get_status", task_id="x", action_id=action_id)
            await socket.append(2)
            assert await socket.seqs(2) == [1, 2]
            slow_database.set()
            results = [(await socket.heard())["data"]["action_id"] for _ in range(2)]
            assert results == ["first", "second"]

    play(scenario)


def test_what_was_said_before_leaving_is_done(
    committed_tenant: Tenant, slow_database: threading.Event
) -> None:
    socket = Socket(committed_tenant.pk)
    agent_id = str(make_agent(committed_tenant).pk)

    async def scenario() -> None:
        async with socket.opened():
            await socket.say(action="chat.send_message", agent_id=agent_id, message="Hello?")
            assert socket.wire is not None
            await socket.wire.send_input({"type": "websocket.disconnect", "code": 1000})
            slow_database.set()

    aio.run(scenario())
    assert Task.unscoped.count() == 1


def test_more_than_a_burst_of_frames_is_refused(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            for _ in range(BURST // MAX_FRAME + 15):
                await socket.say(action="nonsense", padding="x" * (MAX_FRAME - 100))
            events = []
            while (event := await socket.heard())["data"]["type"] == "ValidationFailed":
                events.append(event)
            assert len(events) <= BURST // MAX_FRAME
            assert event["data"]["type"] == "RateLimited"
            assert socket.wire is not None
            assert (await socket.wire.receive_output(PATIENCE))["code"] == 4429

    play(scenario)


# --- Signs of life, and moving on --------------------------------------------------------------------


@pytest.fixture
def quick_pings(settings: Any) -> None:
    settings.WEBSOCKET_PING_INTERVAL = 0.05
    settings.WEBSOCKET_PING_TIMEOUT = 0.2


@pytest.mark.usefixtures("quick_pings")
def test_a_client_that_gives_no_sign_of_life_is_refused(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            while (event := await socket.heard())["event"] == "ping":
                pass
            assert (event["event"], event["data"]["type"]) == ("error", "NoSignOfLife")
            assert socket.wire is not None
            assert (await socket.wire.receive_output(PATIENCE))["code"] == 4408

    play(scenario)


@pytest.mark.usefixtures("quick_pings")
@pytest.mark.parametrize("sign", ["message", "pong"])
def test_a_client_that_answers_stays(play: Callable[[Scenario], None], sign: str) -> None:
    async def scenario(socket: Socket) -> None:
        link = Link()
        async with socket.opened(link=link):
            for _ in range(30):
                event = await socket.heard()
                if event["event"] == "pong":
                    continue
                assert event["event"] == "ping"
                if sign == "pong":
                    link.heard()
                else:
                    await socket.say(action="ping")

    play(scenario)


def test_an_old_socket_moves_on(play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            await socket.sent_away()

    monkeypatch.setattr(keepers, "LIFE_SECONDS", 0.01)
    play(scenario)


@pytest.fixture
def own_keeper() -> Iterator[None]:
    """What stops for good is not what the other tests go on with."""
    keepers.keeper.cache_clear()
    yield
    keepers.keeper.cache_clear()


@pytest.mark.usefixtures("own_keeper")
def test_when_the_process_stops_every_socket_moves_on(play: Callable[[Scenario], None]) -> None:
    async def scenario(socket: Socket) -> None:
        async with socket.opened():
            await keepers.keeper().leave()
            await socket.sent_away()
        # One that was about to come in as well.
        late = Socket(socket.tenant_id)
        async with late.opened():
            await late.sent_away()

    play(scenario)


def test_one_more_than_there_is_room_for_is_refused(play: Callable[[Scenario], None], settings: Any) -> None:
    async def scenario(socket: Socket) -> None:
        valkey.client().delete(census._COUNTS)  # a web process of an earlier test, killed, counts for a while
        settings.MAX_WEBSOCKET_CONNECTIONS = 2
        others = [Socket(socket.tenant_id) for _ in range(2)]
        async with others[0].opened():
            async with others[1].opened():
                path = f"/ws/{socket.tenant_id}/{socket.session_id}"
                wire = WebsocketCommunicator(URLRouter(websocket_urlpatterns), path)
                assert (await wire.connect(PATIENCE))[0]
                assert await refusal(wire) == ("TooManyConnections", 4429)
                await wire.disconnect(timeout=PATIENCE)
            async with socket.opened():
                await socket.append()
                assert await socket.seqs(1) == [1]

    play(scenario)
