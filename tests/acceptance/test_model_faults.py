"""Whatever the model server does, the run ends, says why, and the worker takes the next one."""

from __future__ import annotations

from typing import Any

import pytest

from bench.fake_model import answer_text
from tests.acceptance.stack import FAKE_KEY, Stack, Turn, new_model, new_session

FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("fake-400", {}, "ProviderRejected"),
    ("fake-401", {}, "ProviderAuthenticationFailed"),
    ("fake-403", {}, "ProviderAuthenticationFailed"),
    ("fake-404", {}, "ProviderRejected"),
    ("fake-429", {}, "ProviderRateLimited"),
    ("fake-500", {}, "ProviderUnavailable"),
    ("fake-503", {}, "ProviderUnavailable"),
    ("fake-nonsense", {}, "ProviderRejected"),
    ("fake-garbage?tokens=6", {}, "ProviderProtocolError"),
    ("fake-garbage?at=0", {}, "ProviderProtocolError"),
    ("fake-garbage?hex=fffe", {}, "ProviderProtocolError"),
    ("fake-html", {}, "ProviderProtocolError"),
    ("fake-json", {}, "ProviderProtocolError"),
    ("fake-redirect", {}, "ProviderProtocolError"),
    ("fake-huge-line", {}, "ProviderProtocolError"),
    ("fake-cut?tokens=6", {}, "ProviderUnavailable"),
    ("fake-end?tokens=6", {}, "ProviderProtocolError"),
    ("fake-error?tokens=6", {}, "ProviderUnavailable"),
    ("fake-error?tokens=6&code=rate_limit_exceeded", {}, "ProviderRateLimited"),
    ("fake-silent", {"timeout_seconds": 0.5}, "DeadlineExceeded"),
    ("fake-stall?tokens=6", {"timeout_seconds": 0.5}, "DeadlineExceeded"),
    ("fake-slow-first", {"timeout_seconds": 0.5}, "DeadlineExceeded"),
    ("fake-comments?interval=0.05", {"timeout_seconds": 0.5}, "DeadlineExceeded"),
    ("fake-endless?interval=0.02", {"timeout_seconds": 0.5}, "DeadlineExceeded"),
    ("long", {"provider": "scripted", "timeout_seconds": 0.2}, "DeadlineExceeded"),
    # Nobody listens where this provider is.
    ("fake", {"provider": "groq"}, "ProviderUnavailable"),
]
# These have sent half of their answer by then.
HALVES = tuple(f"fake-{kind}?tokens=6" for kind in ("cut", "end", "error", "stall", "garbage"))


def run(stack: Stack, agent_id: str) -> tuple[dict[str, Any], Turn]:
    """The status of a finished task and the events of its turn."""
    session_id = new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        turn = socket.turn().check()
        assert socket.lives()
    return stack.status(asked["task_id"]), turn


@pytest.mark.parametrize(("model", "config", "error_type"), FAULTS, ids=lambda value: str(value)[:40])
def test_a_fault_of_the_model_ends_the_run_with_its_name(
    stack: Stack, model: str, config: dict[str, Any], error_type: str
) -> None:
    state, turn = run(stack, stack.agent(model, **config))
    assert turn.order().endswith("Ff")
    failed = turn.data("agent_execution_failed")
    assert failed.keys() == {"error", "error_type"}
    assert failed["error_type"] == error_type
    assert turn.data("task_failed") == failed
    assert state["status"] == "failed"
    assert state["output"] is None
    assert (state["error"]["type"], state["error"]["message"]) == (error_type, failed["error"])
    assert state["finished_at"] is not None
    # Said for people, and without anything that only the operator may know.
    assert failed["error"].endswith(".") and " " in failed["error"]
    told = f"{failed} {state}"
    assert FAKE_KEY not in told and stack.model.base_url not in told and "127.0.0.1" not in told
    if model.startswith(HALVES):
        assert turn.text == answer_text(3)
    # And the worker takes the next one.
    state, turn = run(stack, stack.agent("fake?tokens=2"))
    assert (state["status"], turn.text) == ("completed", answer_text(2))


def test_the_operators_key_is_sent_and_never_shown(stack: Stack) -> None:
    model = new_model("fake-401")
    run(stack, stack.agent(model))
    assert stack.model.entries(model)[0]["authorization"] == f"Bearer {FAKE_KEY}"
    assert FAKE_KEY not in stack.log.read_text(errors="replace")


def test_a_redirect_is_not_followed(stack: Stack) -> None:
    run(stack, stack.agent("fake-redirect"))
    assert stack.model.entries("_trap") == []


def test_a_tier_without_the_operators_keys_may_not_use_them(stack: Stack) -> None:
    model = new_model("fake")
    session_id = new_session()
    with stack.socket(session_id, tenant="own-keys") as socket:
        stack.ask(stack.agent(model, tenant="own-keys"), session_id=session_id)
        turn = socket.turn().check()
    assert turn.data("task_failed")["error_type"] == "ProviderNotConfigured"
    assert stack.model.entries(model) == []


def test_the_question_of_a_failed_run_stays_and_the_session_goes_on(stack: Stack) -> None:
    model = new_model("fake-500?fail_times=1&tokens=2")
    agent_id, session_id = stack.agent(model), new_session()
    with stack.socket(session_id) as socket:
        stack.ask(agent_id, "first", session_id=session_id)
        first = socket.turn().check()
        if first.order().endswith("Ff"):  # a platform that tries again has answered already
            stack.ask(agent_id, "second", session_id=session_id)
            assert socket.turn().check().order().endswith("Cc")
            texts = [(message["role"], message["text"]) for message in stack.messages(session_id)]
            assert texts == [("user", "first"), ("user", "second"), ("assistant", answer_text(2))]


def test_nul_and_lone_surrogates_of_a_model_are_replaced(stack: Stack) -> None:
    """The fake says a, NUL, b, c, half an emoji, d, the other half, e."""
    state, turn = run(stack, stack.agent("fake-nul"))
    assert turn.order().endswith("Cc")
    assert turn.text == state["output"]["text"] == "a\ufffdbc\ufffdd\ufffde"
    assert stack.messages(state["session_id"])[1]["text"] == turn.text


@pytest.mark.parametrize("usage", ["null", "-1", '{"prompt_tokens":-5,"completion_tokens":"x"}', "[]"])
def test_usage_that_cannot_be_true_is_not_believed(stack: Stack, usage: str) -> None:
    state, _ = run(stack, stack.agent(f"fake?tokens=2&usage={usage}".replace(" ", "")))
    assert state["status"] == "completed"
    counted = state["output"]["usage"]
    assert counted["accuracy"] == "estimated"
    assert counted["prompt_tokens"] > 0 and counted["completion_tokens"] > 0


def test_one_usage_row_for_every_call(stack: Stack) -> None:
    for model, accuracy in (
        ("fake?tokens=2", "exact"),
        ("fake-cut?tokens=6", "estimated"),
        ("fake-401", "unknown"),
    ):
        state, _ = run(stack, stack.agent(model))
        query = "SELECT provider, model, accuracy FROM core_usagerecord WHERE task_id = %s"
        assert stack.rows(query, state["task_id"]) == [("openai", model, accuracy)]
