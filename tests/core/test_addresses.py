"""Who is behind a connection, and whose word for it counts."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import RequestFactory

from core.addresses import address_of, client_address

PROXIES = ["10.0.0.0/8", "::1/128"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.7", "", "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),  # no proxy of ours: it may say what it likes
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.2.3.4, 198.51.100.1", "198.51.100.1"),  # what the client itself has sent
        ("10.0.0.1", "1.2.3.4, 198.51.100.1 , 10.9.9.9", "198.51.100.1"),
        ("::1", "2001:db8::0001", "2001:db8::1"),
        ("10.0.0.1", "198.51.100.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        (None, "198.51.100.1", "198.51.100.1"),  # a proxy on a Unix socket
        ("", "", None),
    ],
)
def test_only_our_proxies_are_believed(
    settings: Any, peer: str | None, forwarded: str, client: str | None
) -> None:
    settings.TRUSTED_PROXIES = PROXIES
    assert client_address(peer, forwarded) == client


def test_without_proxies_nobody_is_believed(settings: Any) -> None:
    settings.TRUSTED_PROXIES = []
    assert client_address("10.0.0.1", "198.51.100.1") == "10.0.0.1"
    assert client_address(None, "198.51.100.1") is None


def test_of_a_request(settings: Any) -> None:
    settings.TRUSTED_PROXIES = ["127.0.0.1/32"]
    request = RequestFactory().get("/", headers={"X-Forwarded-For": "198.51.100.1"})
    assert address_of(request) == "198.51.100.1"
