"""Logs, metrics and traces of a platform as it runs in production."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from core.models import Tenant
from tests.core.broker.server import eventually
from tests.factories import make_agent, make_key, make_tenant
from tests.seeing.platform import Listener, Platform

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"


def figures(text: str) -> dict[tuple[str, ...], float]:
    """`(name, labels' values …)` of every sample."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def talking(tenant: Tenant, model: str = "fake", **config: Any) -> Any:
    return make_agent(tenant, provider="openai", model=model, **config)


# --- Logs ------------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_request_in_every_process(platform: Platform) -> None:
    tenant = make_tenant()
    task = platform.ask(talking(tenant).pk, trace=HEADER, request_id="find-me")
    assert (task.request_id, task.traceparent[3:35]) == ("find-me", TRACE)
    (asked,) = [line for line in platform.lines("request") if line.get("request_id") == "find-me"]
    assert (asked["route"], asked["status"], asked["tenant_id"]) == ("api/v1/chat/message", 202, tenant.pk)
    assert asked["trace_id"] == TRACE

    def worked() -> list[dict[str, Any]]:
        return [line for line in platform.lines("task") if line.get("request_id") == "find-me"]

    eventually(lambda: len(worked()) == 2)
    run, callback = worked()
    assert (run["action"], run["status"], run["task_id"]) == ("agent.execute", "completed", str(task.pk))
    assert (callback["action"], callback["status"]) == ("websocket.send_message", "completed")
    for line in (run, callback):
        assert (line["tenant_id"], line["trace_id"]) == (tenant.pk, TRACE)
        assert line["ms"] >= 0
        assert line["waited_ms"] >= 0


HOSTILE = "x\r\n{}\x1b[2J\x85\u2028\u202e\x9b\x7f"


def test_one_event_is_one_line_whatever_is_logged(platform: Platform) -> None:
    """Z5: what callers write into every field, the head of the request included."""
    tenant = make_tenant()
    agent = talking(tenant)
    _, key = make_key(tenant)
    body = {"agent_id": str(agent.pk), "message": HOSTILE, "user_info": {"user_id": HOSTILE}}
    for odd in (body, body | {"agent_id": HOSTILE}, body | {"session_id": f"{HOSTILE}\0"}, {HOSTILE: 1}):
        platform.request("POST", "/api/v1/chat/message", json=odd)
    platform.request("POST", "/api/v1/agents", key, json={"name": HOSTILE, "type": HOSTILE, "config": {}})
    for path in ("/%0d%0aevil%1b[2J", "/%C2%85%E2%80%A8", "/chat/%0d%0a%1b", "/api/v1/agents/%0A%1B%9b"):
        platform.request("GET", path)
        platform.request("GET", path, "nbk_\x1b[2J")
    address = urlsplit(platform.base_url)
    raw = (
        b"GET /a\x1b[2J\x9b?q=\x1b HTTP/1.1\r\nHost: 127.0.0.1\x1b\r\nX-Request-ID: \x1b[2J\r\n"
        b"traceparent: \x1b\x85\r\nUser-Agent: \x1b]0;evil\x07\r\nX-Forwarded-Proto: https\r\n"
        b"Connection: close\r\n\r\n"
    )
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(raw)
        while connection.recv(65_536):
            pass
    for model in ("fake-garbage", "fake-400"):
        platform.ask(talking(tenant, model).pk, HOSTILE)
    # The processes' own words, too: starting, and what is no request at all.
    printed = platform.printed()
    assert len(printed) > 15
    for line in printed:
        fields = json.loads(line)
        assert {"time", "level", "logger", "event"} <= set(fields), line
        assert len(line.splitlines()) == 1
        assert line.isprintable(), line


# --- Metrics ---------------------------------------------------------------------------------------


def test_what_all_processes_count_is_one_scrape(platform: Platform) -> None:
    tenant = make_tenant()
    agent, broken = talking(tenant), talking(tenant, "fake-400")
    before = figures(platform.metrics())
    platform.ask(agent.pk)
    platform.ask(agent.pk)
    platform.ask(broken.pk)
    platform.request("GET", "/api/v1/agents")
    with connect(platform.base_url.replace("http", "ws", 1) + "/ws/NO-TENANT/s", proxy=None) as refused:
        assert "error" in str(refused.recv(timeout=10))
    finished = "nooble_tenant_tasks_finished_total"
    exact = {
        ("nooble_tenant_tasks_accepted_total", "agent.execute", tenant.pk): 3,
        (finished, "agent.execute", "completed", tenant.pk): 2,
        (finished, "agent.execute", "failed", tenant.pk): 1,
        (finished, "websocket.send_message", "completed", tenant.pk): 3,
        ("nooble_tenant_tokens_total", "exact", "completion", tenant.pk): 10,
        ("nooble_tenant_provider_calls_settled_total", "exact", tenant.pk): 2,
        ("nooble_tasks_lost",): 0,
        ("nooble_scrape_parts_missing",): 0,
    }
    # Of the totals, tests before this one may have told something only now.
    least = {
        ("nooble_tasks_accepted_total", "agent.execute"): 3,
        ("nooble_tasks_finished_total", "agent.execute", "completed"): 2,
        ("nooble_provider_calls_total", "ok", "openai"): 2,
        ("nooble_provider_calls_total", "ProviderRejected", "openai"): 1,
        ("nooble_first_token_seconds_count",): 2,
        ("nooble_task_queue_seconds_count", "agent"): 3,
        ("nooble_task_run_seconds_count", "agent.execute"): 3,
        ("nooble_tokens_total", "exact", "completion"): 10,
        ("nooble_http_refusals_total", "AuthenticationRequired"): 1,
        ("nooble_http_requests_total", "202"): 3,
        ("nooble_sockets_closed_total", "4400"): 1,
    }

    def missing() -> list[tuple[str, ...]]:
        now = figures(platform.metrics())
        wrong = [name for name in exact if now.get(name) != exact[name]]
        return wrong + [name for name in least if now.get(name, 0.0) - before.get(name, 0.0) < least[name]]

    # Each process tells its own in its own time.
    eventually(lambda: not missing())


def test_a_tenants_key_sees_its_own_figures_only(platform: Platform) -> None:
    tenant, other = make_tenant(), make_tenant()
    for each in (tenant, other):
        platform.ask(talking(each).pk)
    _, key = make_key(tenant)
    eventually(lambda: "nooble_tenant_tasks_finished" in platform.metrics(key))
    assert other.pk not in platform.metrics(key)
    assert "nooble_tasks_accepted" not in platform.metrics(key)
    assert platform.request("GET", "/metrics").status_code == 401


def test_what_a_killed_worker_had_told_stays(platform: Platform) -> None:
    tenant = make_tenant()
    platform.ask(talking(tenant).pk)
    name = ("nooble_tenant_tasks_finished_total", "agent.execute", "completed", tenant.pk)
    eventually(lambda: figures(platform.metrics()).get(name) == 1)
    platform.worker.kill()
    platform.worker = platform.start_worker()
    platform.ask(talking(tenant).pk)
    eventually(lambda: figures(platform.metrics()).get(name) == 2)


# --- Traces ----------------------------------------------------------------------------------------


def spans(collector: Listener, trace_id: str) -> dict[str, Any]:
    """The spans of a trace by their names, with the name of their process as `service`."""
    wire = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    found: dict[str, Any] = {}
    for path, headers, body in list(collector.heard):
        assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        told = wire.ExportTraceServiceRequest.FromString(body)
        for of_process in told.resource_spans:
            for scope in of_process.scope_spans:
                for span in scope.spans:
                    if span.trace_id.hex() == trace_id:
                        found[span.name] = span
    return found


def test_one_trace_goes_from_the_request_to_the_callback(platform: Platform) -> None:
    pytest.importorskip("opentelemetry.sdk")
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    platform.ask(talking(make_tenant()).pk, trace=f"00-{trace_id}-{SPAN}-01")
    wanted = {
        "POST /api/v1/chat/message",
        "chat.send_message",
        "queue",
        "agent.execute",
        "provider.call",
        "websocket.send_message",
    }
    eventually(lambda: wanted <= set(spans(platform.collector, trace_id)))
    found = spans(platform.collector, trace_id)

    def parent(name: str) -> str:
        return str(found[name].parent_span_id.hex())

    def identity(name: str) -> str:
        return str(found[name].span_id.hex())

    assert parent("POST /api/v1/chat/message") == SPAN
    assert parent("chat.send_message") == identity("POST /api/v1/chat/message")
    assert parent("agent.execute") == identity("chat.send_message")
    assert parent("provider.call") == identity("agent.execute")
    run, call = found["agent.execute"], found["provider.call"]
    request, callback = found["POST /api/v1/chat/message"], found["websocket.send_message"]
    assert [event.name for event in call.events] == ["first_token"]
    assert request.start_time_unix_nano < run.start_time_unix_nano <= call.start_time_unix_nano
    assert call.start_time_unix_nano < call.events[0].time_unix_nano <= call.end_time_unix_nano
    assert call.end_time_unix_nano <= run.end_time_unix_nano
    assert callback.end_time_unix_nano > call.end_time_unix_nano
    # Whoever answers can go on with it.
    asked = platform.http.get(f"{platform.model_url.removesuffix('/v1')}/_books").json()["requests"]
    assert any(entry["traceparent"] == f"00-{trace_id}-{identity('provider.call')}-01" for entry in asked)


def test_what_is_told_outside_goes_on_with_the_trace(platform: Platform, listener: Listener) -> None:
    tenant = make_tenant()
    _, key = make_key(tenant)
    created = platform.request("POST", "/api/v1/webhooks", key, json={"url": f"{listener.url}/hooks"})
    assert created.status_code == 201, created.text
    body = {"name": "A", "type": "x", "config": {"provider": "scripted", "model": "echo"}}
    answer = platform.request("POST", "/api/v1/agents", key, json=body, headers={"traceparent": HEADER})
    assert answer.status_code == 201, answer.text
    eventually(lambda: listener.heard)
    _, headers, _ = listener.heard[0]
    assert headers["traceparent"].split("-")[1] == TRACE
