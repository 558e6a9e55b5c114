"""Cancelling: what waits, what runs, what is over, and every moment in between."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.acceptance.stack import Socket, Stack, Turn, new_model, new_session, wait_for

SEED = 20261120
RACES = 120


def started(stack: Stack, socket: Socket, model: str, session_id: str) -> tuple[str, Turn]:
    """A run of that model whose first token has been heard."""
    asked = stack.ask(stack.agent(model), session_id=session_id)
    return asked["task_id"], socket.until("agent_response_token")


def test_what_waits_is_cancelled_at_once_and_never_runs(stack: Stack) -> None:
    model, session_id = new_model("fake"), new_session()
    agent_id = stack.agent(model)
    with stack.socket(session_id) as socket:
        with stack.agents_paused():
            asked = stack.ask(agent_id, session_id=session_id)
            response = stack.cancel(asked["task_id"])
            assert response.status_code == 200
            result = response.json()["result"]
            assert result.keys() == {"task_id", "status", "message"}
            assert (result["task_id"], result["status"]) == (asked["task_id"], "cancelled")
            assert result["message"] == "Task cancelled successfully"
            assert stack.status(asked["task_id"])["status"] == "cancelled"
        turn = socket.turn()
        # The worker has met the message by the time that a later one has been answered.
        later = stack.ask(stack.agent("fake?tokens=1"))
        stack.finished(later["task_id"])
        assert socket.lives()
    assert turn.check().order() == "X"
    state = stack.status(asked["task_id"])
    assert (state["status"], state["attempt"], state["output"]) == ("cancelled", 0, None)
    assert stack.model.entries(model) == []
    assert [message["role"] for message in stack.messages(session_id)] == ["user"]


def test_who_cancelled_and_when_is_kept(stack: Stack) -> None:
    agent_id, session_id = stack.agent("fake?tokens=1"), new_session()
    with stack.socket(session_id) as socket, stack.agents_paused():
        by_nobody = stack.ask(agent_id, session_id=session_id)["task_id"]
        by_ana = stack.ask(agent_id, session_id=session_id)["task_id"]
        assert stack.cancel(by_nobody).status_code == 200
        first = socket.turn()
        body = {"task_id": by_ana, "user_id": "ana"}
        assert stack.request("POST", "/api/chat/cancel", json=body).status_code == 200
        second = socket.turn()
    for turn, who in ((first, "system"), (second, "ana")):
        details = turn.data("task_status_update")["details"]
        assert details["cancelled_by"] == who
        assert details["cancelled_at"]


def test_what_runs_is_stopped_at_the_model_and_keeps_its_text(stack: Stack) -> None:
    model, session_id = new_model("fake-endless?interval=0.005"), new_session()
    with stack.socket(session_id) as socket:
        task_id, heard = started(stack, socket, model, session_id)
        response = stack.cancel(task_id)
        assert response.status_code == 200
        assert response.json()["result"].keys() == {"task_id", "status", "message"}
        assert response.json()["result"]["status"] == "cancelling"
        heard += socket.turn()
    heard.check()
    assert "x" in heard.order() and heard.order().endswith("CX")
    completed = heard.data("agent_execution_completed")
    assert completed["finish_reason"] == "cancelled"
    assert completed["text"] == heard.text != ""
    # The connection was closed in the middle of the answer.
    entry = wait_for(lambda: next((e for e in stack.model.entries(model) if e["outcome"] != "running"), None))
    assert entry["outcome"] == "cut"
    state = stack.status(task_id)
    assert (state["status"], state["error"]) == ("cancelled", None)
    assert state["output"]["text"] == heard.text
    _question, answer = stack.messages(session_id)
    assert (answer["text"], answer["finish_reason"]) == (heard.text, "cancelled")


def test_a_model_that_says_nothing_can_be_cancelled_too(stack: Stack) -> None:
    model, session_id = new_model("fake-silent"), new_session()
    with stack.socket(session_id) as socket:
        asked = stack.ask(stack.agent(model), session_id=session_id)
        heard = socket.until("agent_execution_started")
        wait_for(lambda: stack.model.entries(model))
        assert stack.cancel(asked["task_id"]).json()["result"]["status"] == "cancelling"
        heard += socket.turn()
    assert heard.check().order().endswith("CX")
    assert heard.text == heard.data("agent_execution_completed")["text"] == ""
    wait_for(lambda: stack.model.entry(model)["outcome"] == "cut")
    # Nothing was said, so there is no answer in the conversation.
    assert [message["role"] for message in stack.messages(session_id)] == ["user"]


def test_only_what_was_consumed_is_billed(stack: Stack) -> None:
    model, session_id = new_model("fake-endless?interval=0.005"), new_session()
    with stack.socket(session_id) as socket:
        task_id, heard = started(stack, socket, model, session_id)
        stack.cancel(task_id)
        heard += socket.turn()
    usage = stack.status(task_id)["output"]["usage"]
    assert usage["accuracy"] == "estimated"
    assert 0 < usage["completion_tokens"] <= len(heard.text)
    query = "SELECT completion_tokens, accuracy FROM core_usagerecord WHERE task_id = %s"
    assert stack.rows(query, task_id) == [(usage["completion_tokens"], "estimated")]


@pytest.mark.parametrize("only_if_queued", ["false", "true"])
def test_what_is_over_cannot_be_cancelled(stack: Stack, only_if_queued: str) -> None:
    endings = {
        "completed": stack.ask(stack.agent("fake?tokens=1"))["task_id"],
        "failed": stack.ask(stack.agent("fake-401"))["task_id"],
    }
    with stack.agents_paused():
        endings["cancelled"] = stack.ask(stack.agent("fake?tokens=1"))["task_id"]
        assert stack.cancel(endings["cancelled"]).status_code == 200
    for status, task_id in endings.items():
        before = stack.finished(task_id)
        assert before["status"] == status
        response = stack.cancel(task_id, params={"only_if_queued": only_if_queued})
        assert response.status_code == 409
        assert response.json()["error"]["type"] == "CannotCancel"
        assert response.json()["error"]["message"] == f"Cannot cancel a task in status: {status}"
        assert stack.status(task_id) == before


@pytest.mark.parametrize("way", ["query", "body", "alias", "socket"])
def test_only_if_queued_leaves_a_run_alone(stack: Stack, way: str) -> None:
    model, session_id = new_model("fake-stall?tokens=4"), new_session()
    with stack.socket(session_id) as socket:
        task_id, heard = started(stack, socket, model, session_id)
        body = {"task_id": task_id, "only_if_queued": True}
        if way == "query":
            answer = stack.cancel(task_id, params={"only_if_queued": "true"}).json()
        elif way == "body":
            answer = stack.cancel(task_id, json={"only_if_queued": True}).json()
        elif way == "alias":
            answer = stack.request("POST", "/api/chat/cancel", json=body).json()
        else:
            answer = socket.act("chat.cancel_task", **body)
        assert answer["success"] is False
        assert answer["error"]["type"] == "CannotCancel"
        assert stack.status(task_id)["status"] == "processing"
        assert stack.model.entry(model)["outcome"] == "running"
        assert stack.cancel(task_id).status_code == 200
        heard += socket.turn()
    assert heard.check().order().endswith("CX")


def test_only_if_queued_cancels_what_waits(stack: Stack) -> None:
    agent_id = stack.agent("fake?tokens=1")
    with stack.agents_paused():
        for options in ({"params": {"only_if_queued": "true"}}, {"json": {"only_if_queued": True}}):
            asked = stack.ask(agent_id)
            response = stack.cancel(asked["task_id"], **options)
            assert response.status_code == 200, response.text
            assert stack.status(asked["task_id"])["status"] == "cancelled"


def test_a_second_cancel_of_a_run_changes_nothing(stack: Stack) -> None:
    model, session_id = new_model("fake-endless?interval=0.005"), new_session()
    with stack.socket(session_id) as socket:
        task_id, heard = started(stack, socket, model, session_id)
        first, second = stack.cancel(task_id), stack.cancel(task_id)
        heard += socket.turn()
    assert first.status_code == 200
    assert second.status_code in (200, 409)
    heard.check()
    assert stack.status(task_id)["status"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", None),
        (b"", "application/json"),
        (b"", "text/plain"),
        (b"", "application/x-www-form-urlencoded"),
        (b"{}", "application/json"),
    ],
)
def test_a_cancel_needs_no_body(stack: Stack, body: bytes, content_type: str | None) -> None:
    asked = stack.ask(stack.agent("fake?tokens=1"))
    stack.finished(asked["task_id"])
    headers = {"Content-Type": content_type} if content_type else {}
    assert stack.cancel(asked["task_id"], data=body, headers=headers).status_code == 409


def test_a_cancel_at_any_moment_ends_the_task_once(stack: Stack) -> None:
    """Fired before, during and after short runs: one final state, every client hears the same order."""
    agent_id = stack.agent("fake?tokens=20&interval=0.004")

    def race(number: int) -> tuple[int, dict[str, Any], Turn, dict[str, Any]]:
        # Up to 50 % longer than the whole turn takes.
        moment = random.Random(SEED + number).uniform(0.0, 0.25)
        session_id = new_session()
        with stack.socket(session_id) as socket:
            asked = stack.ask(agent_id, session_id=session_id)
            time.sleep(moment)  # the moment is what is tried here
            answer = stack.cancel(asked["task_id"])
            turn = socket.turn()
        with stack.socket(session_id, token=asked["resume_token"], after=0) as socket:
            replayed = socket.take(socket.last_seq)
        assert replayed == turn, f"seed {SEED + number}"
        return answer.status_code, answer.json(), turn, stack.status(asked["task_id"])

    with ThreadPoolExecutor(max_workers=4) as pool:
        outcomes = list(pool.map(race, range(RACES)))
    seen = set()
    for number, (code, body, turn, state) in enumerate(outcomes):
        told = f"seed {SEED + number}: {turn.order()}, {code}, {state}"
        seen.add(turn.order()[-2:])
        if code == 409:
            assert body["error"]["type"] == "CannotCancel", told
            assert state["status"] == "completed" and turn.order().endswith("Cc"), told
        else:
            assert code == 200, told
            assert state["status"] == "cancelled" and turn.order().endswith("X"), told
            # What had begun to speak ends with what it said.
            if "S" in turn.order():
                assert turn.order().endswith("CX"), told
                assert state["output"]["text"] == turn.text, told
        turn.check()
    assert {"Cc", "CX"} <= seen, "the moments were not spread over the turn"
