"""A WebSocket client without a library: it answers nothing, and says what no library would."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.acceptance.stack import PATIENCE

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, first: int = 0x80, masked: bool = True) -> bytes:
    """One frame; `first` is what its first byte has beside the opcode, by default FIN alone."""
    size, mask = len(payload), 0x80 if masked else 0
    head = struct.pack("!B", first | opcode)
    if size < 126:
        head += struct.pack("!B", mask | size)
    elif size < 65_536:
        head += struct.pack("!BH", mask | 126, size)
    else:
        head += struct.pack("!BQ", mask | 127, size)
    return head + (bytes(4) if masked else b"") + payload  # masked with zeros


@dataclass(frozen=True)
class Frame:
    opcode: int
    payload: bytes

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.payload)
        return event

    @property
    def code(self) -> int:
        """The code of a close."""
        code: int = struct.unpack("!H", self.payload[:2])[0]
        return code


def raw_connection(url: str) -> socket.socket:
    """A connection for which the kernel reads little while its client does not read."""
    parts = urlsplit(url)
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.connect((parts.hostname, parts.port))
    return connection


class RawSocket:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.connection = raw_connection(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        self.connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._unread = bytearray()
        while b"\r\n\r\n" not in self._unread:
            assert self._receive()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def frames(self) -> Iterator[Frame]:
        """The frames up to the end of the connection."""
        while True:
            while (found := self._take()) is None:
                if not self._receive():
                    return
            yield found

    def until_closed(self) -> tuple[list[Frame], int | None]:
        """The frames before the close, and its code; None when there was none. The close is answered."""
        heard = []
        for found in self.frames():
            if found.opcode == CLOSE:
                with suppress(OSError):
                    self.send(frame(CLOSE, found.payload[:2]))
                return heard, found.code
            heard.append(found)
        return heard, None

    def is_dropped(self) -> bool:
        """Whether the connection ends by the other side."""
        while self._receive():
            pass
        return True

    def _receive(self) -> bool:
        try:
            data = self.connection.recv(65_536)
        except ConnectionError:
            return False
        self._unread += data
        return bool(data)

    def _take(self) -> Frame | None:
        data = self._unread
        if len(data) < 2:
            return None
        size, begin = data[1] & 0x7F, 2
        if size >= 126:
            begin = 4 if size == 126 else 10
            if len(data) < begin:
                return None
            size = int.from_bytes(data[2:begin], "big")
        if len(data) < begin + size:
            return None
        found = Frame(data[0] & 0x0F, bytes(data[begin : begin + size]))
        del data[: begin + size]
        return found


@contextmanager
def raw_socket(url: str) -> Iterator[RawSocket]:
    socket = RawSocket(url)
    try:
        yield socket
    finally:
        socket.connection.close()
