"""Whatever the model server does, the run ends, says why, and the worker takes the next one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from bench.fake_model import answer_text
from tests.acceptance.stack import FAKE_KEY, Stack, Turn, new_model, new_session, wait_for

FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("fake-400", {}, "ProviderRejected"),
    ("fake-401", {}, "ProviderAuthenticationFailed"),
    ("fake-403", {}, "ProviderAuthenticationFailed"),
    ("fake-404", {}, "ProviderRejected"),
    # Tried again until a further wait would pass the deadline.
    ("fake-429", {"timeout_seconds": 1}, "ProviderRateLimited"),
    ("fake-429?retry_after=600", {}, "ProviderRateLimited"),
    ("fake-500", {"timeout_seconds": 1}, "ProviderUnavailable"),
    ("fake-503", {"timeout_seconds": 1}, "ProviderUnavailable"),
    ("fake-reset", {"timeout_seconds": 1}, "ProviderUnavailable"),
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
    ("fake", {"provider": "groq", "timeout_seconds": 1}, "ProviderUnavailable"),
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
    model = new_model("fake-400?fail_times=1&tokens=2")
    agent_id, session_id = stack.agent(model), new_session()
    with stack.socket(session_id) as socket:
        stack.ask(agent_id, "first", session_id=session_id)
        assert socket.turn().check().order().endswith("Ff")
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


@pytest.mark.parametrize(
    ("model", "accuracies"),
    [
        ("fake?tokens=2", ["exact"]),
        ("fake-cut?tokens=6", ["estimated"]),
        ("fake-401", ["unknown"]),
        ("fake-503?fail_times=2&tokens=2", ["unknown", "unknown", "exact"]),
        ("fake-reset?fail_times=1&tokens=2&usage=none", ["unknown", "estimated"]),
    ],
)
def test_one_usage_row_for_every_call(stack: Stack, model: str, accuracies: list[str]) -> None:
    model = new_model(model)
    state, _ = run(stack, stack.agent(model))
    assert usage_rows(stack, state) == [("openai", model, accuracy) for accuracy in accuracies]
    entries = stack.model.entries(model)
    assert len(entries) == len(accuracies)
    assert all(entry["ended_at"] is not None for entry in entries)


def usage_rows(stack: Stack, state: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Provider, model and accuracy of the task's calls, in order."""
    query = "SELECT provider, model, accuracy FROM core_usagerecord WHERE task_id = %s ORDER BY attempt, call"
    return stack.rows(query, state["task_id"])


# --- Faults that pass ---------------------------------------------------------------------------------


def test_a_provider_that_asks_for_patience_gets_it(stack: Stack) -> None:
    model = new_model("fake-429?fail_times=2&retry_after=2&tokens=2")
    state, turn = run(stack, stack.agent(model))
    assert turn.order().endswith("Cc")
    assert (state["status"], turn.text) == ("completed", answer_text(2))
    asked_at = [entry["received_at"] for entry in stack.model.entries(model)]
    assert len(asked_at) == 3
    assert all(later - earlier >= 2 for earlier, later in pairwise(asked_at))


def test_a_third_of_faults_fails_no_more_than_one_run_of_a_hundred(stack: Stack) -> None:
    model = new_model("fake-flaky?rate=0.3&status=500,502,503&tokens=2")
    agent_id = stack.agent(model)
    asked = [stack.ask(agent_id, f"Question {number}?", session_id=new_session()) for number in range(100)]
    ended = [stack.finished(task["task_id"]) for task in asked]
    texts = [state["output"]["text"] for state in ended if state["status"] == "completed"]
    assert len(texts) >= 99
    assert set(texts) == {answer_text(2)}
    entries = stack.model.entries(model)
    assert len(entries) > 130
    (counted,) = stack.rows("SELECT count(*) FROM core_usagerecord WHERE model = %s", model)
    assert counted == (len(entries),)


def test_half_an_answer_is_never_shown_as_a_whole_one(stack: Stack) -> None:
    for fault in ("fake-cut?tokens=6", "fake-end?tokens=6"):
        model = new_model(fault)
        state, turn = run(stack, stack.agent(model))
        assert (state["status"], turn.text) == ("failed", answer_text(3))
        [_, answer] = stack.messages(state["session_id"])
        assert (answer["text"], answer["finish_reason"]) == (answer_text(3), "failed")
        # Nor is it asked for again: the reader has its beginning.
        assert len(stack.model.entries(model)) == 1


def test_an_endless_answer_ends_at_the_limit_of_tokens(stack: Stack) -> None:
    model = new_model("fake-endless?interval=0")
    state, turn = run(stack, stack.agent(model, max_output_tokens=30))
    assert (state["status"], turn.text) == ("completed", answer_text(30))
    assert turn.data("agent_execution_completed")["finish_reason"] == "length"
    assert state["output"]["usage"]["accuracy"] == "estimated"
    assert state["output"]["usage"]["completion_tokens"] > 0
    assert wait_for(lambda: stack.model.entry(model)["outcome"] != "running")
    assert stack.model.entry(model)["outcome"] == "cut"


# --- A provider that is dead --------------------------------------------------------------------------


def test_a_dead_provider_is_left_alone_until_it_answers_again(stack: Stack) -> None:
    """Its sixth request would be answered: after five failures only a probe finds that out."""
    model = new_model("fake-503?fail_times=5&tokens=2")
    agent_id = stack.agent(model)
    fallback = {"provider": "openai", "model": new_model("fake?tokens=3")}
    helped = stack.agent(model, fallback=fallback)

    state, _ = run(stack, agent_id)
    assert state["error"]["type"] == "ProviderUnavailable"
    assert len(stack.model.entries(model)) == 5

    state, turn = run(stack, agent_id)
    assert (state["status"], state["error"]["type"]) == ("failed", "ProviderUnavailable")
    assert turn.order() == "SFf"
    assert usage_rows(stack, state) == []
    state, turn = run(stack, helped)
    assert (state["status"], turn.text) == ("completed", answer_text(3))
    assert usage_rows(stack, state) == [("openai", fallback["model"], "exact")]
    # Another model of the same server does not suffer.
    state, _ = run(stack, stack.agent(new_model("fake?tokens=2")))
    assert state["status"] == "completed"
    assert len(stack.model.entries(model)) == 5

    wait_for(lambda: run(stack, agent_id)[0]["status"], equal_to="completed")
    assert len(stack.model.entries(model)) == 6


def test_the_fallback_answers_for_a_provider_that_is_not_there(stack: Stack) -> None:
    """Nobody listens where `groq` is; it is asked a few times first, unless its circuit is open."""
    fallback = {"provider": "openai", "model": new_model("fake?tokens=2")}
    model = new_model("fake")
    agent_id = stack.agent(model, provider="groq", fallback=fallback)
    state, turn = run(stack, agent_id)
    assert turn.order().endswith("Cc")
    assert (state["status"], turn.text) == ("completed", answer_text(2))
    *tries, answered = usage_rows(stack, state)
    assert answered == ("openai", fallback["model"], "exact")
    # The pauses between them are chances: the last try may not be worth its pause.
    assert set(tries) == {("groq", model, "unknown")} and 3 <= len(tries) <= 5
    assert len(stack.model.entries(fallback["model"])) == 1
