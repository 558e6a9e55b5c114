"""Sessions in the console."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from conversations.admin import SHOWN
from core.models import Tenant
from tests.factories import make_agent, make_message, make_session, make_task

ATTACKS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "</div></section><iframe src=javascript:alert(1)>",
    "[x](javascript:alert(1)) ![](https://evil.example/?q=1)",
)


def test_a_conversation_reads_like_a_chat(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    task = make_task(tenant)
    make_message(session, "user", "Good morning", task)
    answer = make_message(session, "assistant", "Good evening", task)
    type(answer).unscoped.filter(pk=answer.pk).update(finish_reason="cancelled")
    page = admin_client.get(reverse("admin:conversations_session_change", args=[session.pk])).content.decode()
    assert page.index("console-message-user") < page.index("Good morning") < page.index("Good evening")
    assert page.index("console-message-assistant") < page.index("Good evening")
    assert "<span>cancelled</span>" in page
    assert reverse("admin:core_task_change", args=[task.pk]) in page


def test_attacks_are_text(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant), key="s-attacked")
    for attack in ATTACKS:
        make_message(session, "assistant", attack)
    page = admin_client.get(reverse("admin:conversations_session_change", args=[session.pk])).content.decode()
    for attack in ATTACKS[:4]:
        assert attack not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert 'src="https://evil.example' not in page


def test_a_long_conversation_is_read_page_by_page(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant))
    for number in range(SHOWN + 1):
        make_message(session, "user", f"[{number}]")
    address = reverse("admin:conversations_session_change", args=[session.pk])
    newest = admin_client.get(address)
    assert "[0]" not in newest.content.decode()
    assert "[1]" in newest.content.decode()
    older = admin_client.get(address, {"before": newest.context["older"]}).content.decode()
    assert "[0]" in older
    assert "[1]" not in older
    for nonsense in ("x", "-1", "9" * 30, ""):
        assert admin_client.get(address, {"before": nonsense}).status_code == 200


def test_sessions_are_found_by_whole_ids(admin_client: Client, tenant: Tenant) -> None:
    session = make_session(make_agent(tenant), key="s-wanted")
    other = make_session(make_agent(tenant))
    page = admin_client.get(
        reverse("admin:conversations_session_changelist"), {"q": "s-wanted"}
    ).content.decode()
    assert session.key in page
    assert other.key not in page
