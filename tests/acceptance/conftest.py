"""One platform for all acceptance tests: `python -m nooble.run` and a fake model, as processes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from bench.processes import Process
from nooble.embedded import discard, services_file
from tests.acceptance.stack import FAKE_KEY, Model, Stack, Tenant, clean_environment, http_session
from tests.engines import HOMES, PREFIX

START_SECONDS = 180.0
LOG_SHOWN = 8_000  # characters
# What a platform that meets only callers' mistakes never prints.
TROUBLE = ("Traceback (most recent call last)", "unexpected error", "| ended (")

# Tenants beside the demo one, and keys that may do less. Prints what the tests need to know of them.
SEED = """
import json
from django.db.models.functions import Now
from core.models import ApiKey, Tenant, Tier
from core.models.access import SCOPES
from core.tenancy import across_tenants

scope = across_tenants()
scope.__enter__()  # until the process ends
tiers = {
    "demo": Tier.objects.get(slug="demo"),
    "small": Tier.objects.create(
        slug="small",
        name="Small",
        allowed_models=["fake?tokens=2", "echo"],
        priority_ceiling=2,
        **Tier.UNLIMITED,
    ),
    "own-keys": Tier.objects.create(
        slug="own-keys", name="Own keys", uses_environment_keys=False, **Tier.UNLIMITED
    ),
}

def key_of(tenant, scopes, **fields):
    key = ApiKey(tenant=tenant, name="acceptance", scopes=list(scopes), **fields)
    text = key.mint()
    key.save()
    return text

made = {}
of_demo_tier = {name: "demo" for name in ("other", "shelf", "asked")}
for name, tier in (of_demo_tier | {"small": "small", "own-keys": "own-keys"}).items():
    tenant = Tenant.objects.create(id=name, name=name, tier=tiers[tier])
    made[name] = {"id": name, "key": key_of(tenant, SCOPES)}
demo = Tenant.objects.get(id="demo")
made["demo"] = {
    "id": "demo",
    "key": key_of(demo, SCOPES),
    "keys": {
        "reads agents": key_of(demo, ["agents:read"]),
        "writes agents": key_of(demo, ["agents:write"]),
        "chats": key_of(demo, ["chat:read", "chat:write"]),
        "revoked": key_of(demo, SCOPES, revoked_at=Now()),
    },
}
print(json.dumps(made))
"""


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The running platform. The `groq` provider leads to a port where nobody listens."""
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=HOMES))
    with ExitStack() as cleanup:
        cleanup.callback(discard, home)
        ready = home / "fake-model.json"
        command = (sys.executable, "-m", "bench.fake_model", "--port", "0", "--ready-file", str(ready))
        schedule = ("--first-token", "0", "--interval", "0.002", "--tokens", "20")
        environment = clean_environment()
        fake = Process((*command, *schedule), environment, home / "fake-model.log")
        cleanup.callback(fake.stop)
        model_url = fake.wait_for(ready, START_SECONDS)["base_url"]
        environment |= {
            "NOOBLE_HOME": str(home),
            "PORT": "0",
            "OPENAI_BASE_URL": model_url,
            "OPENAI_API_KEY": FAKE_KEY,
            "GROQ_BASE_URL": "http://127.0.0.1:1/v1",
            "GROQ_API_KEY": FAKE_KEY,
            "NOOBLE_OUTBOUND_ALLOW": "127.0.0.1/32",
            "ORCHESTRATOR_WEBSOCKET_PING_INTERVAL": "1",
        }
        platform = Process((sys.executable, "-m", "nooble.run"), environment, home / "run.log")
        cleanup.callback(platform.stop)
        demo = platform.wait_for(home / "demo.json", START_SECONDS)
        services = json.loads(services_file(home).read_text())
        http = cleanup.enter_context(http_session())
        database = cleanup.enter_context(
            psycopg.connect(
                services["urls"]["database_owner_url"], autocommit=True, options="-c nooble.tenant=*"
            )
        )
        valkey = cleanup.enter_context(redis.Redis.from_url(services["urls"]["redis_url"]))
        running = Stack(
            home=home,
            log=home / "run.log",
            pid=platform.pid,
            base_url=demo["base_url"],
            model=Model(model_url, http),
            http=http,
            database=database,
            valkey=valkey,
            tenants={},
        )
        made = json.loads(running.shell(SEED))
        running.tenants = {name: Tenant(**fields) for name, fields in made.items()}
        yield running


@pytest.fixture(autouse=True)
def quiet_log(stack: Stack) -> Iterator[None]:
    """Whatever a test does, nothing breaks: no traceback, no process that ends."""
    begin = stack.log.stat().st_size
    children = stack.children()
    yield
    printed = stack.log.read_bytes()[begin:].decode(errors="replace")
    assert not [line for line in printed.splitlines() if any(mark in line for mark in TROUBLE)]
    assert stack.children() == children


@pytest.fixture(autouse=True)
def no_refused_tokens(stack: Stack) -> None:
    """All tests show theirs from one address."""
    stack.forget_counts("tokens")


@pytest.fixture
def nothing_stored(stack: Stack) -> Iterator[None]:
    """The test leaves no row behind."""
    before = stack.stored()
    yield
    assert stack.stored() == before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the end of the platform's log."""
    report = yield
    running: Any = getattr(item, "funcargs", {}).get("stack")
    if report.failed and running is not None and running.log.exists():
        end = running.log.read_bytes()[-LOG_SHOWN:].decode(errors="replace")
        report.sections.append(("the platform's log", end))
    return report
