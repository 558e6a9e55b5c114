"""Lists come in pages."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from django.test import Client
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from core.api.pages import DEFAULT_LIMIT, limit_of
from core.errors import ValidationFailed
from core.models import Tenant
from tests.factories import make_agent, make_key, make_session

WRONG = ["000000001999", "٣", "²", "1" * 5_000, "0" * 5_000, "", "0", "201", "-1", "+1", "1.0", " 1", "1_0"]


def asked(query: str) -> Request:
    return Request(APIRequestFactory().get(f"/?{query}"))


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text[:12]))
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(ValidationFailed):
        limit_of(asked(f"limit={quote(text)}"))


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("200", 200), ("007", 7)])
def test_limits(text: str, limit: int) -> None:
    assert limit_of(asked(f"limit={text}")) == limit
    assert limit_of(asked("")) == DEFAULT_LIMIT


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text[:12]))
def test_a_list_with_a_wrong_limit_is_refused_by_name(tenant: Tenant, client: Client, text: str) -> None:
    _, key = make_key(tenant)
    session = make_session(make_agent(tenant))
    for path in ("/api/v1/agents", f"/api/v1/sessions/{session.key}/messages"):
        headers = {"authorization": f"Bearer {key}"}
        assert client.get(path, headers=headers).status_code == 200
        response = client.get(f"{path}?limit={quote(text)}", headers=headers)
        assert response.status_code == 422
        assert response.json()["error"]["type"] == "ValidationFailed"


@pytest.mark.parametrize("text", ["٣", "²", "1" * 5_000, "-1"], ids=lambda text: repr(text[:12]))
def test_a_cursor_of_messages_that_is_none(tenant: Tenant, client: Client, text: str) -> None:
    _, key = make_key(tenant)
    session = make_session(make_agent(tenant))
    path = f"/api/v1/sessions/{session.key}/messages?cursor={quote(text)}"
    assert client.get(path, headers={"authorization": f"Bearer {key}"}).status_code == 422


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["limit=1&limit=2", "cursor=&limit=1&cursor=", "nobody=1&nobody=1"])
def test_a_parameter_that_comes_twice_is_refused_by_name(tenant: Tenant, client: Client, query: str) -> None:
    _, key = make_key(tenant)
    response = client.get(f"/api/v1/agents?{query}", headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 422
    assert "more than once" in response.json()["error"]["details"].values()
