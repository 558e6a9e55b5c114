"""What reaches the model: instructions, history, limits."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from tests.acceptance.stack import Stack, new_model, new_session


def ask(stack: Stack, agent_id: str, message: str, **fields: Any) -> str:
    """The finished answer."""
    asked = stack.ask(agent_id, message, **fields)
    state = stack.finished(asked["task_id"])
    assert state["status"] == "completed", state
    return str(state["output"]["text"])


def test_the_history_reaches_the_model_in_order(stack: Stack) -> None:
    model, session_id = new_model("fake?tokens=2"), new_session()
    agent_id = stack.agent(model)
    for message in ("one", "two", "three"):
        ask(stack, agent_id, message, session_id=session_id)
    seen = [entry["messages"] for entry in stack.model.entries(model)]
    answer = {"role": "assistant", "content": "tok0 tok1"}
    questions = [{"role": "user", "content": text} for text in ("one", "two", "three")]
    assert seen == [
        questions[:1],
        [questions[0], answer, questions[1]],
        [questions[0], answer, questions[1], answer, questions[2]],
    ]


def test_the_text_of_a_cancelled_answer_is_part_of_the_history(stack: Stack) -> None:
    slow, session_id = new_model("fake-stall?tokens=4&interval=0"), new_session()
    agent_id = stack.agent(slow)
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, "one", session_id=session_id)
        heard = socket.until("agent_response_token")
        stack.cancel(asked["task_id"])
        heard += socket.turn()
        asked = stack.ask(agent_id, "two", session_id=session_id)
        socket.until("agent_response_token")
        stack.cancel(asked["task_id"])
        socket.turn()
    assert stack.model.entries(slow)[1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": heard.text},
        {"role": "user", "content": "two"},
    ]


def test_sessions_do_not_see_each_other(stack: Stack) -> None:
    agent_id = stack.agent("fake-echo")
    ask(stack, agent_id, "a secret of the first")
    assert json.loads(ask(stack, agent_id, "and I?")) == [{"role": "user", "content": "and I?"}]


def test_the_variables_of_instructions_are_filled_in(stack: Stack) -> None:
    instructions = "You are {{agent_name}}, {{ user_id }} asks in {{session_id}} on {{date}}."
    agent_id, session_id = stack.agent("fake-echo", instructions=instructions), new_session()
    days = [datetime.now(UTC).strftime("%Y-%m-%d")]
    said = ask(stack, agent_id, "Hello", session_id=session_id, user_info={"user_id": "ana"})
    days.append(datetime.now(UTC).strftime("%Y-%m-%d"))
    system, question = json.loads(said)
    assert system["role"] == "system"
    expected = [f"You are Acceptance, ana asks in {session_id} on {day}." for day in days]
    assert system["content"] in expected
    assert question == {"role": "user", "content": "Hello"}


def test_only_known_variables_are_filled_in_and_only_once(stack: Stack) -> None:
    """X5: no template language; what a user gives is never a template."""
    instructions = "{{7*7}} {{nonsense}} {0.__class__} %s {{user_id}} ${HOME} {% now %} {{agent_name.config}}"
    agent_id = stack.agent("fake-echo", instructions=instructions)
    said = ask(stack, agent_id, "{{agent_name}}", user_info={"user_id": "{{session_id}}"})
    system, question = json.loads(said)
    assert system["content"] == instructions.replace("{{user_id}}", "{{session_id}}")
    assert question["content"] == "{{agent_name}}"


def test_the_context_budget_drops_the_oldest_messages(stack: Stack) -> None:
    model, session_id = new_model("fake?tokens=2"), new_session()
    # 256 tokens are about 1,024 characters: the last question and a turn or two before it.
    agent_id = stack.agent(model, context_tokens=256)
    questions = [f"{number} " + "x" * 300 for number in range(6)]
    for question in questions:
        ask(stack, agent_id, question, session_id=session_id)
    seen = stack.model.entries(model)[-1]["messages"]
    assert seen[-1] == {"role": "user", "content": questions[-1]}
    assert seen[0]["role"] == "user"
    told = [message["content"] for message in seen if message["role"] == "user"]
    assert told == questions[-len(told) :]
    assert 1 < len(told) < 6
    assert sum(len(message["content"]) for message in seen) <= 1_024


def test_a_question_that_is_larger_than_the_budget_is_asked_all_the_same(stack: Stack) -> None:
    model = new_model("fake?tokens=2")
    ask(stack, stack.agent(model, context_tokens=256), "x" * 5_000)
    assert [message["content"] for message in stack.model.entry(model)["messages"]] == ["x" * 5_000]


def test_settings_of_the_agent_reach_the_model(stack: Stack) -> None:
    model = new_model("fake?tokens=2")
    ask(stack, stack.agent(model, temperature=0.25, max_output_tokens=7), "Hello")
    fields = stack.model.entry(model)["fields"]
    assert fields["temperature"] == 0.25
    assert 7 in (fields.get("max_tokens"), fields.get("max_completion_tokens"))
    assert fields["stream"] is True
