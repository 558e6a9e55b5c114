"""The chat page inside of another site's page, which says who is chatting. Run by `make pages`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from playwright.sync_api import FrameLocator, Page, expect

from pages.conftest import Platform

PAGE = """<!doctype html><title>Shop</title>
<iframe src={address} style="width: 800px; height: 600px"></iframe>
<script>
  let tokens = {tokens};
  window.asked = 0;
  addEventListener("message", (event) => {{
    if (event.origin !== {platform} || event.data?.nooble !== "token") return;
    window.asked += 1;
    const token = tokens.length > 1 ? tokens.shift() : tokens[0];
    if (token) event.source.postMessage({{ nooble: "token", token }}, event.origin);
  }});
</script>"""


@dataclass
class Shop:
    """A site of somebody else's, on an origin of its own."""

    platform: Platform
    origin: str = ""
    page: bytes = b""
    server: ThreadingHTTPServer | None = field(default=None, repr=False)

    def show(self, path: str, *tokens: str) -> str:
        """The address of a page that frames the chat page and gives it these tokens, one after the other."""
        page = PAGE.format(
            address=json.dumps(self.platform.base_url + path),
            tokens=json.dumps(tokens),
            platform=json.dumps(self.platform.base_url),
        )
        self.page = page.encode()
        return self.origin


@pytest.fixture
def shop(platform: Platform) -> Iterator[Shop]:
    shop = Shop(platform)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(shop.page)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shop.origin = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield shop
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def secret(platform: Platform) -> str:
    text: str = platform.call("POST", "/api/v1/end-user-secrets", {"name": "pages"})["secret"]
    return text


def token_of(secret: str, user: str = "ada", seconds: int = 600) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + seconds}, secret, algorithm="HS256")


def signed_agent(platform: Platform, shop: Shop) -> str:
    return platform.agent("echo", access="signed", allowed_origins=[shop.origin, platform.base_url])


def say(frame: FrameLocator, text: str) -> None:
    frame.locator("#message").fill(text)
    frame.locator("#message").press("Enter")


def answered(frame: FrameLocator, count: int) -> None:
    expect(frame.locator('.turn[data-phase="done"]')).to_have_count(count, timeout=60_000)


def test_a_site_says_who_is_chatting(page: Page, platform: Platform, shop: Shop, secret: str) -> None:
    path = signed_agent(platform, shop)
    page.goto(shop.show(path, token_of(secret)))
    frame = page.frame_locator("iframe")
    for count in (1, 2):
        say(frame, f"Hello {count}")
        answered(frame, count)
    assert page.evaluate("window.asked") == 1
    [session] = platform.call("GET", f"/api/v1/sessions?agent_id={path.rpartition('/')[2]}")["items"]
    assert session["user_info"]["user_id"] == "ada"


def test_a_token_that_has_run_out_is_asked_for_again(
    page: Page, platform: Platform, shop: Shop, secret: str
) -> None:
    page.goto(shop.show(signed_agent(platform, shop), token_of(secret, seconds=-600), token_of(secret)))
    frame = page.frame_locator("iframe")
    say(frame, "Hello")
    answered(frame, 1)
    assert page.evaluate("window.asked") == 2
    page.reload()  # with what it remembers, and again first the old token
    answered(frame, 1)
    say(frame, "Hello again")
    answered(frame, 2)


def test_without_a_token_nothing_is_sent(page: Page, platform: Platform, shop: Shop) -> None:
    path = signed_agent(platform, shop)
    page.goto(platform.base_url + path)
    page.fill("#message", "Hello")
    page.press("#message", "Enter")
    expect(page.locator('.turn[data-phase="unsent"]')).to_contain_text("does not know who you are")


def test_another_site_can_neither_show_the_page_nor_say_who_is_chatting(
    page: Page, platform: Platform, shop: Shop, secret: str
) -> None:
    agent = platform.agent(
        "echo", access="signed", allowed_origins=["https://shop.example", platform.base_url]
    )
    page.goto(shop.show(agent, token_of(secret)))
    page.wait_for_timeout(500)
    assert page.frames[1].url.startswith("chrome-error:")
    assert page.evaluate("window.asked") == 0


def test_a_page_that_is_closed_says_why(page: Page, platform: Platform) -> None:
    for config in ({"access": "key"}, {"allowed_origins": ["https://shop.example"]}):
        answer = page.goto(platform.base_url + platform.agent("echo", **config))
        assert answer is not None
        assert answer.status == 403
        expect(page.locator("h1")).to_have_text("Not here")
