"""What every request gets: a name, a place in a trace, a line, and a count."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import pytest
from django.test import Client, RequestFactory

from core import aio, metrics, tracing
from core.api.late import Answer, LateResponse
from core.api.middleware import RequestIdMiddleware
from core.models import Task, Tenant
from tests.factories import make_agent, make_key

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADER = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """What this test's requests count."""
    counted: dict[tuple[str, str], float] = {}
    monkeypatch.setattr(metrics, "_counted", counted)
    return counted


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The log's events of requests."""
    caplog.set_level(logging.INFO, "core.api.middleware")
    return Lines(caplog)


class Lines(list[dict[str, Any]]):
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        super().__init__()
        self._caplog = caplog

    def told(self) -> list[dict[str, Any]]:
        return [each.msg for each in self._caplog.records if each.name == "core.api.middleware"]  # type: ignore[misc]


def ask(client: Client, agent_id: object, **headers: str) -> Any:
    body = {"agent_id": str(agent_id), "message": "Hello"}
    return client.post("/api/v1/chat/message", body, content_type="application/json", headers=headers)


def test_a_message_goes_on_with_the_callers_trace(client: Client, tenant: Tenant) -> None:
    agent = make_agent(tenant)
    answer = ask(client, agent.pk, traceparent=HEADER, x_request_id="my-request.1")
    task = Task.unscoped.get(pk=answer.json()["result"]["task_id"])
    assert (task.traceparent, task.request_id) == (HEADER, "my-request.1")
    assert answer["X-Request-ID"] == "my-request.1"


@pytest.mark.parametrize("header", [None, "garbage", f"00-{'0' * 32}-00f067aa0ba902b7-01", HEADER + "\n"])
def test_a_message_without_a_trace_begins_one(client: Client, tenant: Tenant, header: str | None) -> None:
    agent = make_agent(tenant)
    answer = ask(client, agent.pk, **({"traceparent": header} if header else {}))
    task = Task.unscoped.get(pk=answer.json()["result"]["task_id"])
    trace = tracing.Trace.parse(task.traceparent)
    assert trace is not None
    assert trace.trace_id != TRACE
    assert task.request_id == answer["X-Request-ID"]


@pytest.mark.parametrize("name", ["a b", "x" * 65, "a\r\nb", ""], ids=repr)
def test_a_name_that_could_do_harm_is_not_taken(client: Client, db: None, name: str) -> None:
    assert client.get("/health", headers={"x-request-id": name})["X-Request-ID"] != name


def test_a_request_is_one_line(client: Client, tenant: Tenant, lines: Lines) -> None:
    ask(client, make_agent(tenant).pk)
    (line,) = lines.told()
    assert isinstance(line.pop("ms"), float)
    assert line == {
        "event": "request",
        "method": "POST",
        "route": "api/v1/chat/message",
        "status": 202,
        "tenant_id": tenant.pk,
    }


def test_a_line_has_the_route_and_no_id(client: Client, tenant: Tenant, lines: Lines) -> None:
    _, key = make_key(tenant)
    client.get("/api/v1/sessions/the-session/messages", headers={"authorization": f"Bearer {key}"})
    (line,) = lines.told()
    assert "the-session" not in str(line)
    assert key not in str(line)
    assert (line["status"], line["tenant_id"]) == (404, tenant.pk)


def test_what_nobody_serves_is_told_with_its_path(client: Client, db: None, lines: Lines) -> None:
    client.get("/no/such/place?token=the-canary")
    (line,) = lines.told()
    assert line["path"] == "/no/such/place"
    assert "canary" not in str(line)


def test_probes_are_no_lines_while_all_is_well(client: Client, db: None, lines: Lines) -> None:
    client.get("/health")
    client.post("/health")
    assert [line["status"] for line in lines.told()] == [405]


def test_requests_and_refusals_are_counted(
    client: Client, tenant: Tenant, counted: dict[tuple[str, str], float]
) -> None:
    client.get("/health")
    client.get("/api/v1/agents")
    client.get("/no/such/place")
    assert counted["", "nooble_http_requests\t200"] == 1
    assert counted["", "nooble_http_requests\t401"] == 1
    assert counted["", "nooble_http_requests\t404"] == 1
    assert counted["", "nooble_http_refusals\tAuthenticationRequired"] == 1
    assert (
        sum(amount for (_, name), amount in counted.items() if name.startswith("nooble_http_request_sec")) > 3
    )


@pytest.mark.parametrize("status", [200, 429, 499])
def test_a_late_answer_is_counted_when_it_has_come(
    counted: dict[tuple[str, str], float], lines: Lines, status: int
) -> None:
    """With what it came to; 499 where its client did not wait for it."""

    async def work() -> Answer:
        if status == 499:
            raise asyncio.CancelledError
        return Answer(status, {})

    late = LateResponse(work)
    request = RequestFactory().get("/v1/late", headers={"x-request-id": "late-1"})
    request.resolver_match = None
    RequestIdMiddleware(lambda _: late)(request)
    assert not counted
    with suppress(CancelledError):
        aio.run(late.arrive())
    assert counted["", f"nooble_http_requests\t{status}"] == 1
    assert [line["status"] for line in lines.told()] == ([status] if status >= 400 else [])
