"""Requests to addresses that tenants chose: none of them ends at a private address."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core import aio, outbound
from core.outbound import Answer, OutboundError, check_url, permits, post

LOOPBACK = ("127.0.0.0/8",)


class Trap:
    """A server on every address of this machine that counts who connects, and answers what it is told."""

    def __init__(self, family: socket.AddressFamily, host: str) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.answer: Callable[[socket.socket], None] = lambda client: client.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        )
        self._listener = socket.create_server((host, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client:
            heard = b""
            try:
                while b"\r\n\r\n" not in heard:
                    heard += client.recv(65_536)
                self.requests.append(heard)
                self.answer(client)
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap(socket.AF_INET, "0.0.0.0")
    yield made
    made.close()


@pytest.fixture
def six() -> Iterator[Trap]:
    try:
        made = Trap(socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    yield made
    made.close()


def send(url: str, allow: tuple[str, ...] = (), body: bytes = b"{}") -> Answer:
    return aio.run(post(url, body=body, headers={"X-Mine": "1"}, allow=allow))


HOSTS = (
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "0x7f.1",
    "0x7f000001",
    "0177.0.0.1",
    "2130706433",
    "017700000001",
    "0",
    "0.0.0.0",
    "localhost",
    "LOCALHOST.",
    "127.0.0.1.",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "[::]",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fe80::1]",
    "[fe80::1%25lo]",
    "[fec0::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "[2001:db8::1]",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "ｌｏｃａｌｈｏｓｔ",
    "example.com@127.0.0.1",
    "127.0.0.1#@example.com",
    "user:secret@localhost",
    "127.0.0.1\\@example.com",
    "",
    " 127.0.0.1",
    "127.0.0.1%00.example.com",
)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nobody_gets_to_a_private_address(trap: Trap, scheme: str, host: str) -> None:
    user, at, name = host.rpartition("@")
    url = f"{scheme}://{user}{at}{name}:{trap.port}/"
    with pytest.raises(OutboundError):
        send(url)
    assert trap.connections == 0


def test_nobody_gets_to_a_private_address_of_ipv6(six: Trap) -> None:
    for host in ("[::1]", "[0:0:0:0:0:0:0:1]", "ip6-localhost", "localhost"):
        with pytest.raises(OutboundError):
            send(f"http://{host}:{six.port}/")
    assert six.connections == 0
    assert send(f"http://[::1]:{six.port}/", ("::1/128",)).status == 200


@pytest.mark.parametrize("scheme", ["gopher", "file", "ftp", "ws", "unix", "http+unix", "dict", "javascript"])
def test_other_schemes_are_not_spoken(trap: Trap, scheme: str) -> None:
    with pytest.raises(OutboundError, match="neither http nor https"):
        send(f"{scheme}://127.0.0.1:{trap.port}/", LOOPBACK)
    assert trap.connections == 0


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Every name leads to the first of these, the next time to the second, and then to the last."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any) -> list[Any]:
        asked.append(host)
        address = answers[min(len(asked), len(answers)) - 1]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(outbound.socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "10.1.2.3", "169.254.169.254", "::1"])
def test_a_name_that_leads_inside_is_refused(
    trap: Trap, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    asked = resolve_to(monkeypatch, address)
    with pytest.raises(OutboundError, match="not a public address"):
        send(f"http://inside.example.com:{trap.port}/")
    assert asked == ["inside.example.com"]
    assert trap.connections == 0


def test_a_name_that_changes_its_mind_is_refused(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a public address for whoever looks first, ours for whoever connects."""
    check_url(f"http://rebinding.example.com:{trap.port}/")
    tried: list[Any] = []
    monkeypatch.setattr(outbound, "permits", lambda address, allow: tried.append(address) or permits(address))
    resolve_to(monkeypatch, "203.0.114.1", "127.0.0.1")
    monkeypatch.setattr(outbound, "SECONDS", 0.3)
    for _ in range(3):
        with pytest.raises(OutboundError):
            send(f"http://rebinding.example.com:{trap.port}/")
    # What was checked is what was connected to, each time.
    assert tried == ["203.0.114.1", "127.0.0.1", "127.0.0.1"]
    assert trap.connections == 0


def test_what_the_operator_opens_is_open(trap: Trap) -> None:
    answer = send(f"http://127.0.0.1:{trap.port}/there?is=more", LOOPBACK)
    assert (answer.status, answer.body) == (200, b"ok")
    assert trap.requests[0].startswith(b"POST /there?is=more HTTP/1.1\r\n")
    assert b"\r\nX-Mine: 1\r\n" in trap.requests[0]
    for narrower in ((), ("127.0.0.2/32",), ("10.0.0.0/8", "::/0")):
        with pytest.raises(OutboundError):
            send(f"http://127.0.0.1:{trap.port}/", narrower)
    assert trap.connections == 1


def test_a_redirect_is_an_answer(trap: Trap) -> None:
    there = f"http://127.0.0.1:{trap.port}/again".encode()
    head = b"HTTP/1.1 302 Found\r\nLocation: " + there + b"\r\nContent-Length: 0\r\n\r\n"
    trap.answer = lambda client: client.sendall(head)
    assert send(f"http://127.0.0.1:{trap.port}/", LOOPBACK).status == 302
    assert trap.connections == 1


def test_an_endless_answer_is_cut(trap: Trap) -> None:
    def endless(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            client.sendall(b"x" * 65_536)

    trap.answer = endless
    answer = send(f"http://127.0.0.1:{trap.port}/", LOOPBACK)
    assert (answer.status, len(answer.body)) == (200, outbound.MAX_ANSWER)


def test_a_compressed_answer_stays_as_small_as_it_came(trap: Trap) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nbomb"
    trap.answer = lambda client: client.sendall(head)
    assert send(f"http://127.0.0.1:{trap.port}/", LOOPBACK).body == b"bomb"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"])
def test_a_slow_answer_is_none(trap: Trap, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(outbound, "SECONDS", 0.2)
    ended = threading.Event()

    def silent(client: socket.socket) -> None:
        client.sendall(said)
        client.recv(1)  # ends when they hang up
        ended.set()

    trap.answer = silent
    with pytest.raises(OutboundError, match=r"no answer within 0\.2 s"):
        send(f"http://127.0.0.1:{trap.port}/", LOOPBACK)
    assert ended.wait(10)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000])
def test_what_is_no_answer_is_named(trap: Trap, said: bytes) -> None:
    trap.answer = lambda client: client.sendall(said)
    with pytest.raises(OutboundError, match="no HTTP answer"):
        send(f"http://127.0.0.1:{trap.port}/", LOOPBACK)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OutboundError):
        send(f"http://127.0.0.1:{port}/", LOOPBACK)


def test_a_name_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(outbound.socket, "getaddrinfo", nowhere)
    with pytest.raises(OutboundError, match="leads nowhere"):
        send("http://nowhere.example.com/")


def test_names_that_nobody_answers_hold_up_nobody_else(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that is silent for ever holds threads of ours, and none of the loop's own."""
    go_on, real = threading.Event(), socket.getaddrinfo

    def silent(host: str, *rest: Any) -> Any:
        if host.startswith("silent"):
            go_on.wait()
        return real(host, *rest)

    monkeypatch.setattr(outbound.socket, "getaddrinfo", silent)
    monkeypatch.setattr(outbound, "SECONDS", 0.2)

    async def many() -> None:
        urls = [f"http://silent-{number}.example.com/" for number in range(20)]
        sent = (post(url, body=b"", headers={}) for url in urls)
        assert all(
            isinstance(error, OutboundError) for error in await asyncio.gather(*sent, return_exceptions=True)
        )
        async with asyncio.timeout(5):
            await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 1)

    try:
        aio.run(many())
    finally:
        go_on.set()


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450::1"])
def test_the_world_is_open(address: str) -> None:
    assert permits(address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://" + "x" * 3_000, "longer"),
        ("not a url", "neither"),
        ("http://", "host"),
        ("http://user@example.com/", "a name or a password"),
        ("http://example.com/#there", "fragment"),
        ("http://example.com:99999/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://2130706433/", "not a public address"),
        ("http://0x7f.1/", "not a public address"),
    ],
)
def test_what_can_never_be_reached_is_refused_at_once(url: str, reason: str) -> None:
    with pytest.raises(OutboundError, match=reason):
        check_url(url)
