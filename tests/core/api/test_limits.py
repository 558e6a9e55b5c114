"""Limits over HTTP: who is refused, and what everybody is told."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
import redis
from django.http import HttpResponse
from django.test import Client

from core import ratelimits, valkey
from core.models import Tenant
from orchestrator.access import Resume
from tests.factories import make_agent, make_key, make_session, make_task, make_tenant, sign

SOMEBODY = "198.51.100.7"
NAMES = {"RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}


def ask(
    path: str, *, method: str = "GET", body: Any = None, ip: str = SOMEBODY, bearer: str = "", **headers: str
) -> HttpResponse:
    sent = headers | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
    client = Client(raise_request_exception=False)
    answer: Any = client.generic(
        method, path, body or "", content_type="application/json", headers=sent, REMOTE_ADDR=ip
    )
    return answer  # type: ignore[no-any-return]


def error_of(answer: Any) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


def assert_limited(answer: Any, limit: str) -> None:
    assert answer.status_code == 429, answer.content
    error = error_of(answer)
    assert (error["type"], error["details"]["limit"]) == ("RateLimited", limit)
    assert int(answer["Retry-After"]) == error["details"]["retry_after"] >= 1


@pytest.mark.parametrize(
    ("path", "expected"), [("/api/v1/agents", 200), ("/api/v1/agents/nothing", 404), ("/v1/models", 200)]
)
def test_a_key_may_ask_as_often_as_its_tier_says(db: None, path: str, expected: int) -> None:
    tenant = make_tenant(ip_requests_per_minute=3)
    key = make_key(tenant)[1]
    assert [ask(path, bearer=key).status_code for _ in range(4)] == [expected] * 3 + [429]
    assert ask(path, bearer=key, ip="198.51.100.8").status_code == expected
    assert_limited(ask("/api/v1/agents", bearer=key), "ip")


def test_a_tenant_may_be_asked_so_often_by_all_together(db: None) -> None:
    tenant = make_tenant(tenant_requests_per_minute=3)
    key = make_key(tenant)[1]
    answers = [ask("/api/v1/agents", bearer=key, ip=f"198.51.100.{number}") for number in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert_limited(answers[-1], "tenant")


def test_what_is_left_is_told(db: None) -> None:
    tenant = make_tenant(ip_requests_per_minute=600, tenant_requests_per_minute=2)
    key = make_key(tenant)[1]
    answer = ask("/api/v1/agents", bearer=key)
    assert answer["RateLimit-Policy"] == '"ip";q=100;w=10, "tenant";q=2;w=60'
    assert re.fullmatch(r'"ip";r=99;t=10, "tenant";r=1;t=60', answer["RateLimit"])
    assert (answer["X-RateLimit-Limit"], answer["X-RateLimit-Remaining"]) == ("2", "1")
    assert 1 <= int(answer["X-RateLimit-Reset"]) <= 60
    ask("/api/v1/agents", bearer=key)
    refused = ask("/v1/models", bearer=key)
    assert refused.status_code == 429
    assert refused["X-RateLimit-Remaining-Requests"] == "0"
    assert re.fullmatch(r"\d+s", refused["X-RateLimit-Reset-Requests"])
    assert error_of(refused)["code"] == "rate_limit_exceeded"


def test_where_nothing_is_limited_nothing_is_told(tenant: Tenant) -> None:
    answer = ask("/api/v1/agents", bearer=make_key(tenant)[1])
    assert answer.status_code == 200
    assert not NAMES & set(answer.headers)


def test_public_requests_count_as_the_tenants(db: None) -> None:
    tenant = make_tenant(ip_requests_per_minute=4)
    session = make_session(make_agent(tenant))
    task = make_task(tenant, action="agent.execute")
    status = f"/api/v1/chat/status/{task.pk}"
    token = Resume(tenant.pk, session.key, 0).token()
    assert ask(status).status_code == 200
    assert ask(f"/api/v1/chat/cancel/{task.pk}", method="POST").status_code == 200
    assert ask(f"/api/v1/chat/stream/{task.pk}?after=9").status_code in (200, 204)
    path = f"/api/v1/sessions/{session.key}/messages"
    assert ask(path, **{"Nooble-Resume": token}).status_code == 200
    assert_limited(ask(path, **{"Nooble-Resume": token}), "ip")
    assert_limited(ask(status), "ip")


def test_a_tenants_limit_is_none_of_the_others(db: None, tenant: Tenant) -> None:
    small = make_tenant(ip_requests_per_minute=1)
    for _ in range(2):
        last = ask("/api/v1/agents", bearer=make_key(small)[1])
    assert last.status_code == 429
    key = make_key(tenant)[1]
    assert {ask("/api/v1/agents", bearer=key).status_code for _ in range(120)} == {200}


# --- Of no tenant -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", f"/api/v1/chat/status/{uuid.UUID(int=5)}", "", 404),
        ("GET", "/api/v1/agents", "", 401),
        ("POST", "/api/v1/chat/message", "{", 400),
        ("POST", "/v1/chat/completions", "{}", 401),
        ("GET", "/", "", 200),
    ],
    ids=["unknown id", "no key", "no JSON", "no key, for their clients", "page"],
)
def test_what_is_no_tenants_counts_by_address(
    db: None, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: str, status: int
) -> None:
    monkeypatch.setattr(ratelimits, "STRANGERS", 30)
    answers = [ask(path, method=method, body=body) for _ in range(31)]
    assert [answer.status_code for answer in answers] == [status] * 30 + [429]
    assert_limited(answers[-1], "ip")
    assert answers[0]["RateLimit-Policy"] == '"ip";q=30;w=60'
    assert ask(path, method=method, body=body, ip="198.51.100.8").status_code == status
    assert ask(path, method=method, body=body, ip="127.0.0.1").status_code == status


def test_whether_we_live_may_be_asked_always(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimits, "STRANGERS", 3)
    assert {ask("/health").status_code for _ in range(20)} == {200}


# --- Tokens -------------------------------------------------------------------------------------------


@pytest.fixture
def session_path(tenant: Tenant) -> str:
    return f"/api/v1/sessions/{make_session(make_agent(tenant)).key}/messages"


FORGED = "nbk_000000000000_" + "A" * 43


@pytest.mark.parametrize("kind", ["key", "service", "resume", "end user"])
def test_whoever_guesses_has_twenty_tries_a_minute(tenant: Tenant, session_path: str, kind: str) -> None:
    agent = make_agent(tenant)

    def guess(ip: str = SOMEBODY) -> Any:
        match kind:
            case "key":
                return ask("/api/v1/agents", bearer=FORGED, ip=ip)
            case "service":
                return ask("/metrics", bearer="not-the-service-token", ip=ip)
            case "resume":
                return ask(session_path, ip=ip, **{"Nooble-Resume": "forged"})
            case _:
                body = f'{{"agent_id": "{agent.pk}", "message": "Hello"}}'
                token = sign("not-the-tenants-secret-at-all-not-at-all", "ada")
                return ask("/api/v1/chat/message", method="POST", body=body, bearer=token, ip=ip)

    refused = 403 if kind == "resume" else 401
    assert [guess().status_code for _ in range(20)] == [refused] * 20
    assert_limited(guess(), "tokens")
    assert guess("198.51.100.8").status_code == refused
    # Who shows what is true is never counted.
    key = make_key(tenant)[1]
    assert ask("/api/v1/agents", bearer=key).status_code == 200


def test_who_shows_nothing_is_no_guesser(tenant: Tenant, session_path: str) -> None:
    assert [ask("/api/v1/agents").status_code for _ in range(25)] == [401] * 25
    assert [ask(session_path).status_code for _ in range(25)] == [403] * 25


def test_guesses_of_one_network_count_together(db: None) -> None:
    for number in range(20):
        assert ask("/api/v1/agents", bearer=FORGED, ip=f"2001:db8:0:1::{number:x}").status_code == 401
    assert_limited(ask("/api/v1/agents", bearer=FORGED, ip="2001:db8:0:1:ffff::1"), "tokens")
    assert ask("/api/v1/agents", bearer=FORGED, ip="2001:db8:0:2::1").status_code == 401


def test_where_nobody_can_count_a_guess_is_refused_as_ever(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    away = valkey.Client.of("redis://127.0.0.1:1", max_connections=1)
    monkeypatch.setattr(valkey, "client", lambda: away)
    with pytest.raises(redis.RedisError):
        valkey.client().ping()
    assert {ask("/api/v1/agents", bearer=FORGED).status_code for _ in range(25)} == {401}
