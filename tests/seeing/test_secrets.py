"""X4: what opens something is set everywhere, and found nowhere; what people say is in no log."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from core.actions.bus import execute
from core.actions.end_users import EndUserSecretCreateAction
from core.models import Tenant
from core.tenancy import across_tenants, tenant_scope
from tests.core.broker.server import eventually
from tests.factories import make_key, make_tenant
from tests.seeing.platform import HEADERS, OPERATORS_KEY, SERVICE_TOKEN, Listener, Platform

SAID = f"the-canary-that-somebody-said-{uuid.uuid4().hex}"
SHOWN = 20  # rows of each kind that a person looks at


@pytest.fixture
def tenant(platform: Platform) -> Tenant:
    return make_tenant()


@pytest.fixture
def key(tenant: Tenant) -> str:
    return make_key(tenant)[1]


@pytest.fixture
def secrets(platform: Platform, listener: Listener, tenant: Tenant, key: str) -> dict[str, str]:
    """All of them, and everything has been done with them that could make them show."""
    listener.answer = _quoting
    found = {
        "the operator's key": OPERATORS_KEY,
        "the service token": SERVICE_TOKEN,
        "SECRET_KEY": os.environ["SECRET_KEY"],
        "ENCRYPTION_KEYS": os.environ["ENCRYPTION_KEYS"],
        "the tenant's key": key,
        "the provider's key": f"canary-{uuid.uuid4().hex}",
        "a wrong key": f"nbk_0123456789ab_{uuid.uuid4().hex}-{uuid.uuid4().hex[:10]}",
    }
    with tenant_scope(tenant.pk):
        found["the end users' secret"] = execute(EndUserSecretCreateAction(name="site")).secret
    provider = {"name": "mine", "base_url": f"{listener.url}/v1", "api_key": found["the provider's key"]}
    _done(platform.request("POST", "/api/v1/providers", key, json=provider), 201)
    hook = _done(
        platform.request("POST", "/api/v1/webhooks", key, json={"url": f"{listener.url}/hooks"}), 201
    )
    found["the webhook's secret"] = hook["secret"]
    for model in ("fake", "fake-401", "fake-garbage", "fake-error", "refused"):
        found[f"a token of {model}"] = _talk(platform, key, model)
    _misuse(platform, tenant, found)
    eventually(lambda: any(path == "/hooks" for path, _, _ in listener.heard))
    return found


def _quoting(headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """An error that quotes what it was asked, as real servers do."""
    asked = json.loads(body)
    words = (
        f"{asked['messages'][-1]['content']} {headers['authorization']}"
        if "messages" in asked
        else f"{headers}"
    )
    return 400, json.dumps({"error": {"message": words, "type": "invalid_request_error"}}).encode()


def _done(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


def _talk(platform: Platform, key: str, model: str) -> str:
    """A conversation with such a model; returns what opens its past."""
    config = {"provider": "mine" if model == "refused" else "openai", "model": model}
    body = {"name": "A", "type": "x", "config": config | {"instructions": f"Remember {SAID}"}}
    agent = _done(platform.request("POST", "/api/v1/agents", key, json=body), 201)
    asked = {"agent_id": agent["agent_id"], "message": SAID, "user_info": {"user_id": "ada", "name": SAID}}
    told = _done(platform.request("POST", "/api/v1/chat/message", json=asked), 202)["result"]
    platform.ended(uuid.UUID(told["task_id"]))
    token: str = told["resume_token"]
    headers = {"Nooble-Resume": token}
    _done(platform.request("GET", f"/api/v1/sessions/{told['session_id']}/messages", headers=headers), 200)
    return token


def _misuse(platform: Platform, tenant: Tenant, found: dict[str, str]) -> None:
    """Secrets where they do not belong."""
    for secret in found.values():
        platform.request("GET", "/api/v1/agents", secret)
        platform.request("GET", "/api/v1/agents", found["the tenant's key"], params={"key": secret})
        platform.request("POST", "/api/v1/chat/message", json={"message": SAID, "api_key": secret})
        platform.request("POST", "/api/v1/chat/message", data=f'{{"key": "{secret}'.encode())
        base = platform.base_url.replace("http", "ws", 1)
        for path, prefix in (
            (f"/ws/{tenant.pk}/s", "nooble.resume."),
            (f"/ws/tenants/{tenant.pk}/updates", "nooble.bearer."),
        ):
            protocols: Any = ["nooble.v1", prefix + re.sub(r"[^\w.~-]", "x", secret)]
            with (
                suppress(ConnectionClosed, InvalidStatus),
                connect(
                    base + path, subprotocols=protocols, additional_headers=HEADERS, proxy=None
                ) as connected,
            ):
                connected.recv(timeout=10)


def hits(text: str, secrets: dict[str, str]) -> list[str]:
    return [name for name, secret in secrets.items() if secret in text]


def test_a_secret_shows_nowhere(
    platform: Platform, secrets: dict[str, str], tenant: Tenant, key: str
) -> None:
    places = {
        "logs": "\n".join(platform.printed()),
        "Valkey": "\n".join(_of_valkey()),
        "the database": "\n".join(_of_the_database()),
        "the console": "\n".join(_of_the_console()),
        "the API": "\n".join(_of_the_api(platform, key)),
    }
    assert {place: found for place, text in places.items() if (found := hits(text, secrets))} == {}
    # What was looked at is what there is.
    assert SAID in places["the database"]
    assert SAID in places["the console"]
    assert SAID in places["the API"]
    assert "nbk_" in places["the console"]
    assert tenant.pk in places["Valkey"]
    assert tenant.pk in places["logs"]


def test_what_people_say_is_in_no_log(platform: Platform, secrets: dict[str, str]) -> None:
    printed = "\n".join(platform.printed())
    assert SAID not in printed
    assert "ProviderRejected" in printed
    assert "ProviderAuthenticationFailed" in printed


def _of_valkey() -> Iterator[str]:
    client: Any = redis.Redis.from_url(settings.REDIS_URL)
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda name: client.lrange(name, 0, -1),
        b"set": client.smembers,
        b"zset": lambda name: client.zrange(name, 0, -1),
        b"stream": client.xrange,
    }
    for name in client.scan_iter(count=1_000):
        kind = client.type(name)
        if kind != b"none":  # gone meanwhile
            yield f"{name!r} {read[kind](name)!r}"


def _of_the_database() -> Iterator[str]:
    with across_tenants(), connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT row_to_json(found)::text FROM "{table}" AS found')
            yield from (row for (row,) in cursor.fetchall())


def _of_the_console() -> Iterator[str]:
    """Every list, and of its first rows what they are and what became of them."""
    client = Client()
    client.force_login(User.objects.create_superuser("ada"), "django.contrib.auth.backends.ModelBackend")

    def look(address: str) -> str:
        return str(client.get(address, follow=True).content.decode())

    yield look(reverse("admin:index"))
    for model, _ in admin.site._registry.items():
        place = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        yield look(reverse(f"{place}_changelist"))
        with across_tenants():
            rows = list(model._base_manager.values_list("pk", flat=True)[:SHOWN])
        for pk in rows:
            for page in ("change", "history"):
                yield look(reverse(f"{place}_{page}", args=[pk]))


def _of_the_api(platform: Platform, key: str) -> Iterator[str]:
    """Every address that needs no id, and then those whose ids stand in the answers."""
    ids: set[str] = set()
    for path in _paths(get_resolver(), ""):
        if "<" not in path:
            text = platform.request("GET", f"/{path}", key).text
            ids |= set(re.findall(r'"(?:\w*_?id|slug|name)":"([\w-]{1,64})"', text))
            yield text
    for path in _paths(get_resolver(), ""):
        if path.count("<") == 1 and path.startswith(("api/", "internal/")) and "stream" not in path:
            for each in sorted(ids)[:30]:
                yield platform.request("GET", "/" + re.sub("<[^>]+>", each, path), key).text


def _paths(resolver: URLResolver, prefix: str) -> Iterator[str]:
    for pattern in resolver.url_patterns:
        path = f"{prefix}{pattern.pattern}"
        if isinstance(pattern, URLPattern):
            if not path.startswith("admin/"):
                yield path
        else:
            yield from _paths(pattern, path)
