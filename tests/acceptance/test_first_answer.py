"""A message goes in over HTTP and its answer comes out over a socket, token by token."""

from __future__ import annotations

from bench.fake_model import answer_text
from tests.acceptance.stack import Stack, new_model, new_session, wait_for


def test_an_answer_streams_from_a_model_server(stack: Stack) -> None:
    model = new_model("fake?tokens=60&interval=0.005")
    agent_id, session_id = stack.agent(model), new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        turn = socket.turn().check()
    assert turn.order().startswith("ST") and turn.order().endswith("Cc")
    assert turn.text == answer_text(60)
    assert {event["task_id"] for event in turn} == {asked["task_id"]}
    assert len(turn.named("agent_response_token")) > 1
    assert stack.model.entry(model)["outcome"] == "finished"


def test_tokens_are_heard_while_the_model_is_still_speaking(stack: Stack) -> None:
    # This model sends half of its answer and then neither more nor an end.
    model = new_model("fake-stall?tokens=20")
    agent_id, session_id = stack.agent(model), new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        heard = socket.until("agent_response_token")
        while heard.text != answer_text(10):
            heard.append(socket.receive())
        entry = stack.model.entry(model)
        assert (entry["outcome"], entry["tokens"]) == ("running", 10)
        assert stack.status(asked["task_id"])["status"] == "processing"
        assert stack.cancel(asked["task_id"]).status_code == 200
        heard += socket.turn()
    assert heard.check().order().endswith("CX")


def test_an_answer_streams_from_a_scripted_agent_without_any_server(stack: Stack) -> None:
    agent_id, session_id = stack.agent("demo", provider="scripted"), new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, "What are you?", session_id=session_id)
        heard = socket.until("agent_response_token")
        assert stack.status(asked["task_id"])["status"] == "processing"
        heard += socket.turn()
    heard.check()
    assert len(heard.named("agent_response_token")) > 10
    assert "You wrote: “What are you?”" in heard.text


def test_a_scripted_echo_answers_exactly_what_was_said(stack: Stack) -> None:
    agent_id, session_id = stack.agent("echo", provider="scripted"), new_session()
    message = "  two  spaces,\n\ta tab, “quotes”, 日本語 and 🙂  "
    with stack.socket(session_id) as socket:
        stack.ask(agent_id, message, session_id=session_id)
        assert socket.turn().check().text == message


def test_the_demo_agent_is_ready_from_the_start(stack: Stack) -> None:
    """With an operator's key it speaks through that provider; the fake serves every model's name."""
    agents = stack.request("GET", "/api/v1/agents", key=stack.demo.key).json()["items"]
    (demo,) = [agent for agent in agents if agent["slug"] == "demo"]
    assert demo["config"]["provider"] == "openai"
    asked = stack.ask(demo["agent_id"])
    assert stack.finished(asked["task_id"])["output"]["text"] == answer_text(20)


def test_without_a_socket_the_answer_waits_in_the_status(stack: Stack) -> None:
    asked = stack.ask(stack.agent("fake?tokens=3"))
    wait_for(lambda: stack.status(asked["task_id"])["status"] == "completed")
    assert stack.status(asked["task_id"])["output"]["text"] == answer_text(3)
