"""What a browser may do with our pages."""

from __future__ import annotations

import pytest
from django.test import Client

from core.models import Tenant
from tests.factories import make_agent


def policy_of(client: Client, path: str) -> dict[str, list[str]]:
    response = client.get(path)
    header = response.headers["Content-Security-Policy"]
    return {part.split()[0]: part.split()[1:] for part in header.split(";")}


@pytest.mark.parametrize("path", ["/", "/chat/nobody"])
def test_a_page_runs_our_scripts_only(client: Client, db: None, path: str) -> None:
    policy = policy_of(client, path)
    assert policy["default-src"] == ["'none'"]
    assert policy["script-src"] == policy["style-src"] == policy["frame-ancestors"] == ["'self'"]
    assert policy["connect-src"] == ["'self'", "ws://testserver"]
    assert policy["base-uri"] == ["'none'"]


def test_the_chat_page_too(client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    assert policy_of(client, f"/chat/{agent.pk}")["script-src"] == ["'self'"]


@pytest.mark.parametrize("path", ["/admin/login/", "/admin/core/task/"])
def test_the_console_runs_no_script_that_stands_in_a_page(admin_client: Client, path: str) -> None:
    policy = policy_of(admin_client, path)
    assert "'unsafe-inline'" not in policy["script-src"]
    assert policy["form-action"] == ["'self'"]


def test_nothing_but_pages_needs_one(client: Client, db: None) -> None:
    assert "Content-Security-Policy" not in client.get("/health").headers
