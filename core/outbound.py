"""HTTP to addresses that tenants chose: webhooks, their own providers, tools.

A tenant's address must never lead into the operator's network. What counts is the numeric address
that a socket is about to connect to, so that is where it is checked: whatever a name resolves to, a
second time too, and however a number is written, no socket is made for an address that is not public.

Nothing here knows Django: which private networks the operator opens (NOOBLE_OUTBOUND_ALLOW) is an argument.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

SECONDS = 10.0  # for a whole request: resolve, connect, send, and read the answer
MAX_ANSWER = 64 * 1024  # bytes that are read of an answer
MAX_URL = 2_048  # characters

# Of IPv6, what is routed in the world; less what leads to addresses of the other kind, or nowhere.
_WORLD = ipaddress.ip_network("2000::/3")
_NOT_THE_WORLD = [
    ipaddress.ip_network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
_KEEPALIVE_SECONDS = 30

# A name server that never answers holds a thread. It shall be none that others wait for.
_resolving = ThreadPoolExecutor(max_workers=32, thread_name_prefix="resolver")

Allow = Sequence[str]
_sessions: dict[tuple[asyncio.AbstractEventLoop, tuple[str, ...]], aiohttp.ClientSession] = {}


class OutboundError(Exception):
    """A request that brought no answer; the message may be shown to the tenant."""


class AddressRefused(OSError):
    """The address is not public, and the operator has not opened it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `body` holds at most `MAX_ANSWER` bytes."""

    status: int
    body: bytes


def permits(address: str, allow: Allow = ()) -> bool:
    """Whether requests may go to this numeric address: a public one, or one of the networks in `allow`."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if any(ip in ipaddress.ip_network(network) for network in allow):
        return True
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    # Mapped, NAT64, 6to4 and Teredo addresses have an IPv4 address inside: none of them is let through.
    return ip.is_global and ip in _WORLD and not any(ip in network for network in _NOT_THE_WORLD)


def check_url(url: str, allow: Allow = ()) -> None:
    """Refuse at once what can never be reached. Raises OutboundError.

    What a name leads to is not asked for here: only the moment of the connect counts.
    """
    try:
        parts = URL(url)
        host = parts.host or ""
    except ValueError:
        raise OutboundError("not a URL") from None
    if len(url) > MAX_URL:
        raise OutboundError(f"longer than {MAX_URL} characters")
    if parts.scheme not in ("http", "https"):
        raise OutboundError("neither http nor https")
    if not host:
        raise OutboundError("no host")
    if parts.user is not None or parts.password is not None:
        raise OutboundError("a name or a password in the address")
    if parts.fragment:
        raise OutboundError("a fragment in the address")
    if _is_number(host) and not permits(host, allow):
        raise OutboundError("not a public address")


def _is_number(host: str) -> bool:
    """Whether a host is an address and no name: also one of the forms that only old software knows."""
    if ":" in host:
        return True
    try:
        socket.inet_aton(host)
    except (OSError, UnicodeError):
        return False
    return True


def checked_connector(allow: Allow, *, reuse_seconds: float = 0) -> aiohttp.TCPConnector:
    """Connections to public addresses, and to the networks in `allow`. Call it on the loop.

    A connection waits `reuse_seconds` for another request to the same host.
    """
    return aiohttp.TCPConnector(
        resolver=_Resolver(),
        use_dns_cache=False,
        socket_factory=_Guard(tuple(allow)).open,
        limit=0,
        force_close=not reuse_seconds,
        keepalive_timeout=reuse_seconds or None,
    )


class _Guard:
    """Makes the sockets; nobody connects without one."""

    def __init__(self, allow: Allow) -> None:
        self._allow = allow

    def open(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for this very address. Raises AddressRefused."""
        family, kind, protocol, _, target = address
        if not permits(str(target[0]), self._allow):
            raise AddressRefused("not a public address")
        made = socket.socket(family=family, type=kind, proto=protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
        return made


class _Resolver(AbstractResolver):
    """The system's resolver, in threads that wait for nothing else."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().run_in_executor(
            _resolving, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """The threads are the process's."""


async def post(url: str, *, body: bytes, headers: Mapping[str, str], allow: Allow = ()) -> Answer:
    """POST once, for `SECONDS` at most, to wherever `url` leads; a redirect is an answer like any other.

    The whole answer may be endless: no more than `MAX_ANSWER` bytes of it are read, as they are.
    Raises OutboundError.
    """
    check_url(url, allow)
    try:
        async with asyncio.timeout(SECONDS):
            response = await _session(allow).post(
                URL(url), data=body, headers={"Accept-Encoding": "identity", **headers}, allow_redirects=False
            )
            try:
                return Answer(response.status, await _beginning(response))
            finally:
                response.close()
    except TimeoutError:
        raise OutboundError(f"no answer within {SECONDS:g} s") from None
    except aiohttp.ClientConnectorDNSError:
        raise OutboundError("the name leads nowhere") from None
    except aiohttp.ClientConnectorCertificateError:
        raise OutboundError("the certificate is not valid") from None
    except aiohttp.ClientSSLError:
        raise OutboundError("no TLS connection") from None
    except aiohttp.ClientConnectorError as error:
        raise OutboundError(str(error.os_error.strerror or error.os_error)) from None
    except aiohttp.ClientError as error:
        raise OutboundError(f"no HTTP answer: {type(error).__name__}") from None
    except (OSError, ValueError) as error:
        raise OutboundError(f"no connection: {type(error).__name__}") from None


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The first bytes of an answer. One that breaks off after its status was an answer all the same."""
    body = bytearray()
    try:
        while len(body) < MAX_ANSWER and (data := await response.content.readany()):
            body += data
    except (aiohttp.ClientError, OSError):
        pass
    return bytes(body[:MAX_ANSWER])


def _session(allow: Allow) -> aiohttp.ClientSession:
    """The running loop's, for these networks."""
    key = asyncio.get_running_loop(), tuple(allow)
    session = _sessions.get(key)
    if session is None or session.closed:
        for dead in [known for known in _sessions if known[0].is_closed()]:
            del _sessions[dead]
        session = _sessions[key] = aiohttp.ClientSession(
            connector=checked_connector(allow),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )
    return session


async def close() -> None:
    """Close the running loop's sessions."""
    loop = asyncio.get_running_loop()
    for key in [known for known in _sessions if known[0] is loop]:
        await _sessions.pop(key).close()
