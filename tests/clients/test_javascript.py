"""The official OpenAI client for JavaScript, unchanged: a tenant's agents are its models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.fake_model import answer_text
from tests.acceptance.limited import limited_key
from tests.acceptance.stack import FINAL, PATIENCE, Stack, new_model, wait_for

HERE = Path(__file__).parent
# Debian's is too old for the client: npm brings one that is not.
_OWN = HERE / "node_modules" / "node" / "bin" / "node"
NODE = str(_OWN) if _OWN.exists() else shutil.which("node")

if NODE is None:
    pytest.skip("node is missing (Debian: apt install npm)", allow_module_level=True)
if not (HERE / "node_modules" / "openai").is_dir():
    pytest.skip("the client is not installed: `make clients` does it", allow_module_level=True)


def does(stack: Stack, what: str, agent: str = "", key: str | None = None, retries: int = 0) -> Any:
    """What came of it, as the program prints it."""
    assert NODE is not None
    environment = {
        "PATH": os.environ["PATH"],
        "BASE_URL": stack.base_url,
        "KEY": key or stack.demo.keys["chats"],
        "AGENT": agent,
        "RETRIES": str(retries),
    }
    done = subprocess.run(
        [NODE, "client.mjs", what],
        cwd=HERE,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=12&interval=0.002")


def test_a_chat_is_completed(stack: Stack) -> None:
    model = new_model("fake?tokens=12")
    answer = does(stack, "chat", stack.agent(model))
    [choice] = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (answer_text(12), "stop")
    told = stack.model.entry(model)["usage"]
    assert {name: answer["usage"][name] for name in told} == told
    assert answer["requestId"]


def test_a_chat_is_streamed(stack: Stack) -> None:
    model = new_model("fake?tokens=40&interval=0.004")
    *said, end, usage = does(stack, "stream", stack.agent(model))
    assert said[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in said) == answer_text(40)
    assert len(said) > 3
    assert end["choices"][0]["finish_reason"] == "stop"
    told = stack.model.entry(model)["usage"]
    assert {name: usage["usage"][name] for name in told} == told


def test_the_clients_own_helper_reads_the_stream(stack: Stack, agent_id: str) -> None:
    assert does(stack, "helper", agent_id) == {"content": answer_text(12)}


def test_an_answer_ends_before_a_stop_word(stack: Stack) -> None:
    answer = does(stack, "stop", stack.agent("fake-endless?interval=0.002"))
    assert answer["choices"][0]["message"]["content"] == answer_text(5)
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_agents_are_models(stack: Stack, agent_id: str) -> None:
    found = does(stack, "models", agent_id)
    slug = stack.request("GET", f"/api/v1/agents/{agent_id}", key=stack.demo.key).json()["slug"]
    assert slug in found["ids"]
    assert (found["one"]["object"], found["one"]["owned_by"]) == ("model", "demo")


def test_errors_are_its_own(stack: Stack, agent_id: str) -> None:
    refused = does(stack, "refused", agent_id)
    assert (refused["name"], refused["status"]) == ("UnprocessableEntityError", 422)
    assert (refused["param"], refused["code"]) == ("n", "unsupported_parameter")
    assert refused["requestID"]
    absent = does(stack, "failed", "nobody")
    assert (absent["name"], absent["code"], absent["param"]) == ("NotFoundError", "model_not_found", "model")
    stranger = does(stack, "failed", agent_id, key="sk-nonsense")
    assert (stranger["name"], stranger["code"]) == ("AuthenticationError", "invalid_api_key")


def test_a_run_that_fails_is_not_tried_again(stack: Stack) -> None:
    model = new_model("fake-401")
    failed = does(stack, "failed", stack.agent(model), retries=3)
    assert (failed["status"], failed["type"]) == (502, "ProviderAuthenticationFailed")
    assert len(stack.model.entries(model)) == 1


@pytest.mark.parametrize("what", ["abort", "abortWhole"])
def test_an_abort_cancels_the_run(stack: Stack, what: str) -> None:
    model = new_model("fake-endless?interval=0.005")
    agent_id = stack.agent(model)
    assert does(stack, what, agent_id)
    wait_for(lambda: [entry["outcome"] for entry in stack.model.entries(model)], equal_to=["cut"])

    def status() -> str:
        response = stack.request(
            "GET", "/api/v1/executions", params={"agent_id": agent_id}, key=stack.demo.key
        )
        [run] = response.json()["items"]
        return str(run["status"])

    wait_for(lambda: status() in FINAL)
    assert status() == "cancelled"


def test_a_rate_limit_is_seen(stack: Stack) -> None:
    found = does(stack, "limited", key=limited_key(stack))
    assert (found["name"], found["status"], found["code"]) == ("RateLimitError", 429, "rate_limit_exceeded")
    assert int(found["retryAfter"]) >= 1
