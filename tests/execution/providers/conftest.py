"""A raw model server, for what no HTTP library would send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from execution.providers import registry


@dataclass
class RawServer:
    """Accepts connections, reads one request at a time and plays a list of byte strings back."""

    base_url: str = ""
    script: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def answers(self, *parts: bytes, close: bool = True) -> None:
        """Every request is answered by these parts, each in a write of its own."""

        async def play(writer: asyncio.StreamWriter) -> None:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if close:
                writer.close()

        self.script = play

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                assert self.script is not None
                await self.script(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away, which `closed` tells
        finally:
            self.closed.set()
            writer.close()


@pytest_asyncio.fixture
async def raw() -> AsyncIterator[RawServer]:
    server = RawServer()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    yield server
    await registry.close()
    listener.close()
    await listener.wait_closed()


@pytest.fixture
def sse() -> Callable[..., bytes]:
    """A whole answer of status 200 that ends with the connection; the events are given as text."""

    def build(*events: str, content_type: str = "text/event-stream") -> bytes:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n"
        return head.encode() + "".join(f"data: {event}\n\n" for event in events).encode()

    return build
