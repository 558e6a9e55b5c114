"""Who is at the other end of a connection, also behind the operator's own proxies."""

from __future__ import annotations

import functools
import ipaddress

from django.conf import settings
from django.http import HttpRequest

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def address_of(request: HttpRequest) -> str | None:
    """The client's numeric address; None for a connection that has none."""
    return client_address(request.META.get("REMOTE_ADDR"), request.META.get("HTTP_X_FORWARDED_FOR", ""))


def client_address(peer: str | None, forwarded_for: str) -> str | None:
    """The numeric address of the client behind `peer`, who connected to us.

    `forwarded_for` is the header `X-Forwarded-For`. Anybody can send one, and each proxy appends who
    connected to it: so it is read from its end, for as long as a proxy of TRUSTED_PROXIES has written it.
    """
    networks = _networks(tuple(settings.TRUSTED_PROXIES))
    client = peer or None
    hops = forwarded_for.split(",") if forwarded_for else []
    while networks and hops and (client is None or _is_in(client, networks)):
        hop = hops.pop().strip()
        try:
            client = str(ipaddress.ip_address(hop))
        except ValueError:
            break  # not what a proxy writes: the last one that is known stands for all behind it
    return client


@functools.cache
def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def _is_in(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(ip in network for network in networks)
