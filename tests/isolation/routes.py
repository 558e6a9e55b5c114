"""How each HTTP route is tried with another tenant's ids; a line a method and route.

`Case(ids, body)`: the parameters of the path are ids of the World by their names, or by those that `ids`
gives them; the body's values that begin with `$` are such ids, too. Without any id it is a list or a new
thing, which must show nothing of anybody else's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    ids: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    query: dict[str, str] = field(default_factory=dict)
    opened_by: str = ""  # what is the right by itself: whose key comes with it does not matter
    service: bool = False  # the platform's own token opens it
    own_is_refused: str = ""  # why the tenant's own ids do not succeed here either
    status: int = 404  # of what is not there, where it is a question about many
    public: str = ""  # why it is everybody's, whoever asks


TASK = "who knows a task's id may ask about it"

AGENT = {"name": "A", "type": "assistant", "config": {"provider": "scripted", "model": "echo"}}
TEMPLATE = {"name": "T", "type": "assistant", "config": {"provider": "scripted", "model": "echo"}}
ASK = {"agent_id": "$agent_id", "message": "Hello"}
RUN = {"agent_id": "$agent_id", "messages": [{"role": "user", "content": "Hello"}]}
TELL = {
    "event": "task_status_update",
    "service": "agent-execution",
    "tenant_id": "@tenant_id",
    "task_id": "$task_id",
    "timestamp": "2026-01-01T00:00:00Z",
    "data": {"status": "processing", "details": {}},
}

_agents: dict[tuple[str, str], Case] = {
    ("GET", "api/v1/agents"): Case(),
    ("POST", "api/v1/agents"): Case(body=AGENT),
    ("POST", "api/v1/agents/import"): Case(body={**AGENT, "format": "nooble.agent", "format_version": 1}),
    ("POST", "api/v1/agents/bulk"): Case(
        body={"agents": ["$agent_id"], "changes": {"type": "x"}}, status=202
    ),
    ("GET", "api/v1/agents/bulk/<str:task_id>"): Case({"task_id": "bulk_id"}),
    ("POST", "api/v1/agents/bulk/<str:task_id>/cancel"): Case({"task_id": "bulk_id"}),
    ("GET", "api/v1/agents/<str:agent_id>"): Case(),
    ("PATCH", "api/v1/agents/<str:agent_id>"): Case(body={"name": "New"}),
    ("DELETE", "api/v1/agents/<str:agent_id>"): Case(),
    ("GET", "api/v1/agents/<str:agent_id>/versions"): Case(),
    ("GET", "api/v1/agents/<str:agent_id>/versions/<str:number>"): Case(),
    ("GET", "api/v1/agents/<str:agent_id>/diff"): Case(query={"from": "1", "to": "1"}),
    ("POST", "api/v1/agents/<str:agent_id>/publish"): Case(),
    ("POST", "api/v1/agents/<str:agent_id>/rollback"): Case(body={"version": 1}),
    ("POST", "api/v1/agents/<str:agent_id>/restore"): Case(),
    ("POST", "api/v1/agents/<str:agent_id>/suspend"): Case(body={"reason": "x"}),
    ("POST", "api/v1/agents/<str:agent_id>/unsuspend"): Case(),
    ("POST", "api/v1/agents/<str:agent_id>/duplicate"): Case(body={}),
    ("GET", "api/v1/agents/<str:agent_id>/export"): Case(),
    ("POST", "api/v1/agents/<str:agent_id>/validate"): Case(),
    ("GET", "api/v1/templates"): Case(),
    ("POST", "api/v1/templates"): Case(body=TEMPLATE),
    ("GET", "api/v1/templates/<str:template_id>"): Case(),
    ("PATCH", "api/v1/templates/<str:template_id>"): Case(body={"name": "New"}),
    ("DELETE", "api/v1/templates/<str:template_id>"): Case(),
    ("POST", "api/v1/templates/<str:template_id>/instantiate"): Case(body={"name": "Made"}),
}
_chat: dict[tuple[str, str], Case] = {
    ("POST", "api/v1/chat/message"): Case(
        body={**ASK, "tenant_id": "@tenant_id"}, opened_by="the agent is public"
    ),
    ("POST", "api/chat/send"): Case(body={**ASK, "tenant_id": "@tenant_id"}, opened_by="the agent is public"),
    ("GET", "api/v1/chat/status/<str:task_id>"): Case(query={"tenant_id": "@tenant_id"}, opened_by=TASK),
    ("POST", "api/v1/chat/cancel/<str:task_id>"): Case(query={"tenant_id": "@tenant_id"}, opened_by=TASK),
    ("GET", "api/v1/chat/stream/<str:task_id>"): Case(
        {"task_id": "ended_id"}, query={"tenant_id": "@tenant_id"}, opened_by=TASK
    ),
    ("POST", "api/chat/status"): Case(
        body={"task_id": "$task_id", "tenant_id": "@tenant_id"}, opened_by=TASK
    ),
    ("POST", "api/chat/cancel"): Case(
        body={"task_id": "$task_id", "tenant_id": "@tenant_id"}, opened_by=TASK
    ),
    ("GET", "chat/<str:agent_id>"): Case(public="the page of a public agent"),
    ("GET", "api/v1/sessions"): Case(),
    ("POST", "api/v1/sessions"): Case(body={"agent_id": "$agent_id"}),
    ("DELETE", "api/v1/sessions"): Case(query={"user_id": "$user_id"}, status=200),
    ("GET", "api/v1/sessions/<str:session_id>"): Case(),
    ("PATCH", "api/v1/sessions/<str:session_id>"): Case(body={"title": "x"}),
    ("DELETE", "api/v1/sessions/<str:session_id>"): Case(),
    ("POST", "api/v1/sessions/<str:session_id>/close"): Case(),
    ("GET", "api/v1/sessions/<str:session_id>/export"): Case(),
    ("GET", "api/v1/sessions/<str:session_id>/messages"): Case(),
}
_webhooks: dict[tuple[str, str], Case] = {
    ("GET", "api/v1/webhooks"): Case(),
    ("POST", "api/v1/webhooks"): Case(body={"url": "https://127.0.0.1/x"}),
    ("GET", "api/v1/webhooks/<str:webhook_id>"): Case(),
    ("PATCH", "api/v1/webhooks/<str:webhook_id>"): Case(body={"description": "x"}),
    ("DELETE", "api/v1/webhooks/<str:webhook_id>"): Case(),
    ("GET", "api/v1/webhooks/<str:webhook_id>/deliveries"): Case(),
    ("POST", "api/v1/webhooks/<str:webhook_id>/rotate"): Case(),
    ("POST", "api/v1/webhooks/deliveries/<str:delivery_id>/replay"): Case(),
}
_runs: dict[tuple[str, str], Case] = {
    ("GET", "api/v1/executions"): Case(),
    ("POST", "api/v1/executions"): Case(body=RUN),
    ("GET", "api/v1/executions/<str:task_id>"): Case({"task_id": "execution_id"}),
    ("GET", "api/v1/batch"): Case(),
    ("POST", "api/v1/batch"): Case(body={"agent_id": "$agent_id", "items": [{"message": "Hello"}]}),
    ("GET", "api/v1/batch/<str:batch_id>"): Case(),
    ("GET", "api/v1/batch/<str:batch_id>/results"): Case(),
    ("POST", "api/v1/batch/<str:batch_id>/cancel"): Case(),
    ("POST", "v1/chat/completions"): Case(
        body={"model": "$agent_id", "messages": [{"role": "user", "content": "Hi"}], "stream": True},
    ),
    ("GET", "v1/models"): Case(),
    ("GET", "v1/models/<str:model>"): Case({"model": "agent_id"}),
}
_money: dict[tuple[str, str], Case] = {
    ("GET", "api/v1/usage"): Case(),
    ("GET", "api/v1/budgets"): Case(),
    ("POST", "api/v1/budgets"): Case(
        body={"subject": "agent", "agent_id": "$agent_id", "period": "day", "limit_tokens": 5},
    ),
    ("GET", "api/v1/budgets/<str:budget_id>"): Case(),
    ("PATCH", "api/v1/budgets/<str:budget_id>"): Case(body={"limit_tokens": 9}),
    ("DELETE", "api/v1/budgets/<str:budget_id>"): Case(),
}
_ground: dict[tuple[str, str], Case] = {
    ("GET", "api/v1/audit"): Case(),
    ("GET", "api/v1/end-user-secrets"): Case(),
    ("POST", "api/v1/end-user-secrets"): Case(body={"name": "x"}),
    ("DELETE", "api/v1/end-user-secrets/<str:secret_id>"): Case(),
    ("GET", "api/v1/providers"): Case(),
    ("POST", "api/v1/providers"): Case(body={"name": "new", "base_url": "http://127.0.0.1:9/v1"}),
    ("GET", "api/v1/providers/<str:name>"): Case(),
    ("PATCH", "api/v1/providers/<str:name>"): Case(body={"api_key": "x" * 20}),
    ("DELETE", "api/v1/providers/<str:name>"): Case(),
}
_services: dict[tuple[str, str], Case] = {
    ("GET", "internal/v1/health"): Case(service=True, own_is_refused="no worker runs in a test"),
    ("GET", "internal/v1/agents/<str:agent_id>"): Case(query={"tenant_id": "@tenant_id"}, service=True),
    ("POST", "internal/v1/agents/<str:agent_id>/validate"): Case(
        body={"tenant_id": "@tenant_id"}, service=True
    ),
    ("GET", "internal/v1/tasks/<str:task_id>"): Case(query={"tenant_id": "@tenant_id"}, service=True),
    ("POST", "internal/v1/task_updates"): Case(body=TELL, service=True),
    ("POST", "internal/v1/executions"): Case(body={**RUN, "tenant_id": "@tenant_id"}, service=True),
}
NOBODYS = {
    "": "the front page",
    "favicon.ico": "a picture",
    "health": "whether the process answers",
    "health/detailed": "the platform's own state",
    "ws/stats": "counts of the platform",
    "metrics": "figures of the platform",
    "api/schema": "the schema",
    "api/docs": "the schema to read",
    "asyncapi.json": "the schema of sockets",
    "v1/<path:rest>": "what is not there",
}

ROUTES = {**_agents, **_chat, **_webhooks, **_runs, **_money, **_ground, **_services}
