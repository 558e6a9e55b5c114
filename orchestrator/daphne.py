"""What Daphne does otherwise than by itself: its WebSocket protocol, how it stops, and how much it reads.

Imported before Daphne makes its server; another ASGI server never sees it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

from autobahn.exception import Disconnected
from daphne.cli import CommandLineInterface
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet.defer import Deferred

from core import metrics
from orchestrator.bodies import BoundedChannel
from orchestrator.completions.answers import close_all
from orchestrator.sockets.keeper import SLOW_READER, STALL_SECONDS, keeper
from orchestrator.sockets.link import EXTENSION, Bucket, Link

logger = logging.getLogger(__name__)

MAX_UNANSWERED = 20  # frames; beyond it the client is not read from
PINGS, PINGS_A_SECOND = 20, 10.0  # of a client's own, that are answered
MAX_FRAGMENTS = 1_024  # of a message: an empty one costs memory, too
PROGRESS = 64 * 1024  # bytes; who takes so much in the time of a stall is slow, but reads

# Seconds that a client has to answer our close, and one that is behind to read as far as to it.
CLOSE_SECONDS = 3
SLOW_CLOSE_SECONDS = 20

STOP_SECONDS = 3.0  # for what is under way when the process stops
CANCEL_SECONDS = 1.0


class Valve:
    """Whether a client takes what is written to it: Twisted's IPushProducer.

    Daphne writes without waiting. Twisted tells the producer of a transport when its buffer is over
    64 KiB, and when it is empty again.
    """

    full = False

    def __init__(self, transport: Any) -> None:
        super().__init__()
        self._transport = transport
        self._full_since = 0.0
        self._outstanding_then = 0
        self._drained = asyncio.Event()
        self._drained.set()

    async def drained(self) -> None:
        await self._drained.wait()

    def is_stalled(self, seconds: float) -> bool:
        """Whether the client has taken next to nothing for so long. To be asked again and again."""
        if not self.full:
            return False
        outstanding = self._outstanding()
        if self._outstanding_then - outstanding >= PROGRESS:
            self._full_since = time.monotonic()
            self._outstanding_then = outstanding
        return time.monotonic() - self._full_since > seconds

    def pauseProducing(self) -> None:
        if not self.full:
            self.full = True
            self._full_since = time.monotonic()
            self._outstanding_then = self._outstanding()
            self._drained.clear()

    def resumeProducing(self) -> None:
        self.full = False
        self._drained.set()

    def stopProducing(self) -> None:
        """The connection has ended: nobody need wait for it."""
        self.full = False
        self._drained.set()

    def _outstanding(self) -> int:
        """Bytes that the kernel has not taken. Twisted has no public word for it; a test holds this one."""
        transport = self._transport
        try:
            return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)
        except AttributeError:
            return 0  # TLS has other buffers: there, time alone decides


class TransportLink(Valve, Link):
    """The connection under a socket. Daphne reads from it without asking, too."""

    def __init__(self, protocol: SessionProtocol) -> None:
        super().__init__(protocol.transport)
        self._protocol = protocol
        self._unanswered = 0
        # Until now this was the HTTP channel, which would stop reading for ever.
        self._transport.unregisterProducer()
        self._transport.registerProducer(self, True)

    def ping(self) -> None:
        if self._protocol.state == self._protocol.STATE_OPEN:
            self._protocol.sendPing()

    def came(self) -> None:
        """A frame goes to the application."""
        self._unanswered += 1
        self._read_or_not()

    def took(self) -> None:
        self._unanswered -= 1
        self._read_or_not()

    def pauseProducing(self) -> None:
        super().pauseProducing()
        self._read_or_not()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        self._read_or_not()

    def _read_or_not(self) -> None:
        """Read on only while answers find their way and questions do not pile up."""
        reads = not self.full and self._unanswered < MAX_UNANSWERED
        if reads != self.reads:
            self.reads = reads
            self.heard()  # what it said meanwhile is still to come
            (self._transport.resumeProducing if reads else self._transport.pauseProducing)()


class SessionProtocol(WebSocketProtocol):  # type: ignore[misc]
    """Refuses with the codes of the contract; lets the application see what ASGI does not tell it."""

    # Else a frame that is too large or no UTF-8 ends the connection without its close code.
    failByDrop = False
    # Signs of life are the keeper's business.
    autoPingTimeout = 0
    closeHandshakeTimeout = CLOSE_SECONDS

    link: TransportLink
    fragments = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        self.link = TransportLink(self)
        self.pings = Bucket(PINGS, PINGS_A_SECOND)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        if reason.startswith("HTTP Origin header invalid"):
            code = 403
        super().failHandshake(reason, code, responseHeaders)

    def check_timeouts(self) -> None:
        """Only a handshake has a deadline here: open sockets are looked after by the keeper."""
        if self.state == self.STATE_CONNECTING:
            super().check_timeouts()

    # What comes in.

    def onMessageBegin(self, isBinary: bool) -> None:
        self.fragments = 0
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        self.fragments += 1
        if self.fragments > MAX_FRAGMENTS and not self.failedByMe:
            self._fail_connection(self.CLOSE_STATUS_CODE_MESSAGE_TOO_BIG, "too many fragments")
        super().onMessageFrameBegin(length)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A frame that comes after our close goes nowhere."""
        if self.state == self.STATE_OPEN:
            self.link.came()
            super().onMessage(payload, isBinary)

    def onPing(self, payload: bytes) -> None:
        """Answered, but for a flood of them."""
        self.link.heard()
        if self.pings.take():
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        self.link.heard()

    # What goes out.

    def serverSend(self, content: Any, binary: bool = False) -> None:
        """A message of any length: the limit of what comes in is none of what goes out."""
        if self.state != self.STATE_OPEN:
            raise Disconnected("the connection has ended")
        self.sendFrame(opcode=2 if binary else 1, payload=content if binary else content.encode())

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Autobahn's own spells a line for its debug log at each frame, whether anybody reads it or not."""
        self.transport.write(data)

    def serverClose(self, code: int | None = None) -> None:
        """With any code; Autobahn's own refuses those of services that restart or are away."""
        if code == SLOW_READER:
            self.closeHandshakeTimeout = SLOW_CLOSE_SECONDS
        self.sendCloseFrame(code=1000 if code is None else code)

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.link.stopProducing()
        super().onClose(wasClean, code, reason)


class SessionServer(Server):  # type: ignore[misc]
    """Gives sockets their link; and before it ends, ends what is under way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ports: list[Any] = []

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        if isinstance(protocol, SessionProtocol):
            scope["extensions"] = {EXTENSION: protocol.link}
        return super().create_application(protocol, scope)

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """A stream of events waits for its client, and gives up one that does not read it."""
        streams = _streams(protocol)
        if streams and protocol.producer is None:
            protocol.registerProducer(Valve(protocol.transport), True)
        if streams and not message.get("more_body"):
            protocol.unregisterProducer()
        await super().handle_reply(protocol, message)
        if streams:
            await _drained(protocol)

    def log_action(self, protocol: Any, action: str, details: dict[str, Any]) -> None:
        """Requests are logged by the middleware. Daphne's own access log writes paths as they come."""

    def listen_success(self, port: Any) -> None:
        self._ports.append(port)
        super().listen_success(port)

    def kill_all_applications(self) -> Any:
        """What Twisted waits for before it stops. Daphne's own cancels everything at once."""
        return Deferred.fromFuture(asyncio.ensure_future(self._leave()))

    async def _leave(self) -> None:
        """Nobody new comes in; sockets and streams are told to come back; requests have a moment."""
        deadline = time.monotonic() + STOP_SECONDS
        for port in self._ports:
            port.stopListening()
        await keeper().leave()
        while under_way := self._under_way():
            if time.monotonic() > deadline:
                logger.warning("stopped with %d connections under way", len(under_way))
                break
            for protocol in under_way:
                if _streams(protocol):
                    protocol.unregisterProducer()
                    _end(protocol)
            await asyncio.sleep(0.02)
        close_all()
        applications = [details.get("application_instance") for details in self.connections.values()]
        tasks = [task for task in applications if _is_running(task)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)

    def _under_way(self) -> list[Any]:
        return [
            protocol
            for protocol, details in self.connections.items()
            if "disconnected" not in details or _is_running(details.get("application_instance"))
        ]


async def _drained(request: Any) -> None:
    """Wait until the client has read what was sent; one that does not is cut, and comes back."""
    valve, transport = request.producer, request.transport
    while valve is not None and valve.full:
        if valve.is_stalled(STALL_SECONDS):
            metrics.STREAMS_CUT.add()
            transport.abortConnection()
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(valve.drained(), 1.0)


def _is_running(task: asyncio.Future[Any] | None) -> bool:
    return task is not None and not task.done()


def _streams(protocol: Any) -> bool:
    """Whether it is a request that is being answered by Server-Sent Events."""
    if not isinstance(protocol, WebRequest) or not protocol._response_started or protocol.finished:
        return False
    kinds = protocol.responseHeaders.getRawHeaders(b"content-type", [])
    return protocol.channel is not None and any(kind.startswith(b"text/event-stream") for kind in kinds)


def _end(request: Any) -> None:
    """A task's events go on where the client comes back to; a completion that is not whole is cut: else its
    client would take it for whole.
    """
    if request.path.startswith(b"/v1/"):
        request.transport.abortConnection()
    else:
        request.finish()


def install() -> None:
    """Make every connection of this process, and its server, behave so."""
    HTTPFactory.protocol = BoundedChannel
    WebSocketFactory.protocol = SessionProtocol
    CommandLineInterface.server_class = SessionServer
