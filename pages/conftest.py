"""A whole platform in a temporary home, and a browser that looks at it.

The browser is the program that CHROMIUM names, else the system's Chromium, else Playwright's own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from nooble.embedded import discard

ROOT = Path(__file__).parent.parent
START_SECONDS = 120
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# What would make the platform another one than the demo.
UNWANTED = (
    "DATABASE_URL",
    "REDIS_URL",
    "ORCHESTRATOR_REDIS_URL",
    "OPENAI_API_KEY",
    "GROQ_API_KEY",
    "NOOBLE_ENV",
    "DJANGO_SETTINGS_MODULE",
)


@dataclass(frozen=True)
class Platform:
    """The running platform, and the few calls that tests make beside the page."""

    base_url: str
    api_key: str
    admin: dict[str, str]  # username, password

    def call(
        self, method: str, path: str, fields: dict[str, Any] | None = None, **headers: str
    ) -> dict[str, Any]:
        request = urllib.request.Request(
            self.base_url + path,
            method=method,
            data=json.dumps(fields).encode() if fields is not None else None,
            headers={
                "Authorization": f"Bearer {self.api_key}",
                "Content-Type": "application/json",
                **headers,
            },
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def agent(self, model: str, provider: str = "scripted", **config: Any) -> str:
        """The path of a new agent's chat page."""
        fields = {
            "name": model.title(),
            "type": "assistant",
            "config": {"provider": provider, "model": model, **config},
        }
        return f"/chat/{self.call('POST', '/api/v1/agents', fields)['agent_id']}"

    def messages(self, session_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"/api/v1/sessions/{session_id}/messages")["items"]
        return found


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    # Directly under /tmp: socket paths are limited to about 100 bytes.
    home = Path(tempfile.mkdtemp(prefix="nooble-pages-", dir="/tmp"))
    environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    environment |= {"NOOBLE_HOME": str(home), "HOST": "127.0.0.1", "PORT": "0"}
    with open(home / "output", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "nooble.run"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        demo = _wait_for_demo(process, home)
        yield Platform(demo["base_url"], demo["api_key"], demo["admin"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        discard(home)


def _wait_for_demo(process: subprocess.Popen[bytes], home: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_SECONDS
    while not (home / "demo.json").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.exit(f"the platform did not start:\n{(home / 'output').read_text()[-4000:]}")
        time.sleep(0.1)
    demo: dict[str, Any] = json.loads((home / "demo.json").read_text())
    return demo


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=ARGUMENTS
        )
        yield browser
        browser.close()


@pytest.fixture
def new_context(browser: Browser, platform: Platform) -> Iterator[Callable[..., BrowserContext]]:
    """Makes contexts (profiles) whose pages must not meet an error in a script."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def watch(page: Page) -> None:
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: errors.append(str(error)))

    def make(**options: Any) -> BrowserContext:
        context = browser.new_context(**({"base_url": platform.base_url} | options))
        context.on("page", watch)
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def context(new_context: Callable[..., BrowserContext]) -> BrowserContext:
    return new_context()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()
