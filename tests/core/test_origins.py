"""Origins of browsers."""

from __future__ import annotations

import pytest

from core.origins import as_browsers_write, origin_is_sound


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:3000",
        "https://example.org",
        "https://sub.example.org:8443",
        "http://127.0.0.1:8000",
        "http://[::1]:8000",
        "https://xn--bcher-kva.example",
    ],
)
def test_sound_origins(origin: str) -> None:
    assert origin_is_sound(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        " ",
        "*",
        "localhost",
        "example.org",
        "//example.org",
        "http://",
        "http:///",
        "https://:8000",
        "https://example.org/",
        "https://example.org/path",
        "https://example.org?",
        "https://example.org?a=1",
        "https://example.org#",
        "https://example.org#a",
        "https://user@example.org",
        "https://user:word@example.org",
        "https://example.org:port",
        "https://example.org:99999",
        "https://exam ple.org",
        "https://[::1",
        "file:///etc/passwd",
        "chrome-extension://abc",
        "javascript:alert(1)",
        "ws://example.org",
        "https://a.org https://b.org",
        "https://a.org,https://b.org",
    ],
    ids=repr,
)
def test_unsound_origins(origin: str) -> None:
    assert not origin_is_sound(origin)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("https://shop.example", "https://shop.example"),
        (" HTTPS://Shop.Example:443 ", "https://shop.example"),
        ("http://shop.example:80", "http://shop.example"),
        ("http://shop.example:443", "http://shop.example:443"),
        ("https://shop.example:8443", "https://shop.example:8443"),
        ("https://shop.example:", "https://shop.example"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_one_way_to_write_an_origin(given: str, written: str) -> None:
    assert as_browsers_write(given) == written
    assert as_browsers_write(written) == written


@pytest.mark.parametrize(
    "given", ["null", "*", "https://*.shop.example", "shop.example", "https://shop.example/"]
)
def test_what_no_browser_sends_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="an origin is"):
        as_browsers_write(given)
