"""Z1: every answer is one that `/api/schema` tells of, whatever is asked; nothing ends in a 5xx.

schemathesis asks, in a process of its own: `make fuzz` with thousands of cases and all its phases, the
suite with a few of each operation. All of it is the tenant `asked`'s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from nooble.env import ROOT
from tests.acceptance.stack import Stack, clean_environment, wait_for

HERE = Path(__file__).parent
TENANT = "asked"
FULL = os.environ.get("FUZZ") == "full"
PHASES = "coverage,fuzzing,stateful" if FULL else "fuzzing"
EXAMPLES = 25 if FULL else 3
OFTEN = 0.7  # how often a parameter names something that is there
LEAST = 2_000 if FULL else 250  # cases


class Things:
    """Some of everything, three of each: some are deleted on the way."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._key = stack.tenants[TENANT].key
        agents = [
            stack.agent("fake?tokens=2", tenant=TENANT),
            stack.agent("echo", tenant=TENANT, provider="scripted"),
            stack.agent("fake?tokens=2", tenant=TENANT, access="signed", greeting="Hi"),
        ]
        first = agents[0]
        url = "http://127.0.0.1:9/hook"
        webhooks = [self.made("webhooks", url=url)["webhook_id"] for _ in range(3)]
        providers = [f"p{number}" for number in range(3)]
        for name in providers:
            self.made("providers", name=name, base_url=stack.model.base_url, api_key="x" * 20)
        asked = [stack.ask(first) for _ in range(3)]
        bulk = self.made("agents/bulk", agents=[first], changes={"type": "assistant"})["result"]["task_id"]
        run = {"agent_id": first, "input": "Hello"}
        executions = [self.made("executions", **run)["task_id"] for _ in range(2)]
        items = [{"message": "Hello"}]
        batches = [self.made("batch", agent_id=first, items=items)["batch_id"] for _ in range(3)]
        wait_for(lambda: self._deliveries(webhooks))
        template = {"name": "T", "type": "t", "config": {"provider": "scripted", "model": "echo"}}
        templates = [self.made("templates", **template)["template_id"] for _ in range(3)]
        budget: dict[str, Any] = {"subject": "end_user", "period": "day", "limit_tokens": 10**9}
        budgets = [self.made("budgets", **budget, end_user=f"u{n}")["budget_id"] for n in range(3)]
        secrets = [self.made("end-user-secrets", name="s") for _ in range(3)]
        self.secret: str = secrets[0]["secret"]
        tasks = [*(task["task_id"] for task in asked), bulk, *executions]
        sessions = [task["session_id"] for task in asked]
        self.parameters: dict[str, list[str]] = {
            **_wherever("agent_id", agents),
            **_wherever("session_id", sessions),
            **_wherever("task_id", tasks),
            **_wherever("tenant_id", [TENANT]),
            "path.batch_id": batches,
            "path.budget_id": budgets,
            "path.delivery_id": self._deliveries(webhooks),
            "path.model": agents,
            "path.name": providers,
            "path.secret_id": [secret["secret_id"] for secret in secrets[1:]],
            "path.template_id": templates,
            "path.webhook_id": webhooks,
            "body.model": agents,
            "body.config.provider": ["scripted", "openai"],
            "body.config.model": ["echo", "fake?tokens=2"],
            "body.url": [url],
            "body.base_url": [stack.model.base_url],
        }

    def made(self, what: str, **body: Any) -> dict[str, Any]:
        response = self._stack.request("POST", f"/api/v1/{what}", json=body, key=self._key)
        assert response.status_code in (201, 202), response.text
        made: dict[str, Any] = response.json()
        return made

    def _deliveries(self, webhooks: list[str]) -> list[str]:
        paths = (f"/api/v1/webhooks/{webhook}/deliveries" for webhook in webhooks)
        pages = (self._stack.request("GET", path, key=self._key).json() for path in paths)
        return [item["delivery_id"] for page in pages for item in page["items"]]


def _wherever(name: str, values: list[str]) -> dict[str, list[str]]:
    return {f"{place}.{name}": values for place in ("path", "query", "body")}


def configuration(things: Things) -> str:
    """schemathesis.toml, and the ids of what is there."""
    dictionaries, parameters = [], ["[parameters]"]
    for number, (parameter, values) in enumerate(things.parameters.items()):
        dictionaries += [f"[dictionaries.d{number}]", f"values = {json.dumps(values)}"]
        parameters.append(f'"{parameter}" = {{ dictionary = "d{number}", probability = {OFTEN} }}')
    return "\n".join([(HERE / "schemathesis.toml").read_text(), *dictionaries, *parameters])


@pytest.fixture(scope="module")
def things(stack: Stack) -> Things:
    return Things(stack)


@pytest.fixture
def environment(stack: Stack, things: Things) -> Iterator[dict[str, str]]:
    claims = {"sub": "ada", "exp": int(time.time()) + 3_600}
    yield clean_environment() | {
        "TENANT_KEY": stack.tenants[TENANT].key,
        "END_USER_TOKEN": jwt.encode(claims, things.secret, algorithm="HS256"),
        "SERVICE_TOKEN": json.loads((stack.home / "secrets.json").read_text())["SERVICE_TOKEN"],
        "VALKEY_URL": json.loads((stack.home / "services.json").read_text())["urls"]["redis_url"],
        "PYTHONPATH": str(ROOT),
    }


def test_every_answer_is_as_the_schema_says(
    stack: Stack, things: Things, environment: dict[str, str], tmp_path: Path
) -> None:
    config, report = tmp_path / "schemathesis.toml", tmp_path / "report.json"
    config.write_text(configuration(things))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
        *("run", f"{stack.base_url}/api/schema", "--no-color", "--checks", "all"),
        *("--phases", PHASES, "--max-examples", str(EXAMPLES)),
        *("--report", "json", "--report-json-path", str(report)),
        *([] if FULL else ["--generation-deterministic"]),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert report.exists(), done.stderr
    told = json.loads(report.read_text())
    failures = [(failure["code"], failure["title"], failure["operations"]) for failure in told["failures"]]
    assert (failures, told["errors"], done.returncode) == ([], [], 0)
    assert told["operations"]["tested"] == told["operations"]["total"] > 80
    assert told["test_cases"]["generated"] >= LEAST
