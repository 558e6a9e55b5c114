"""Many runs at once in one worker process."""

from __future__ import annotations

import json
from contextlib import ExitStack

from bench.fake_model import answer_text
from tests.acceptance.stack import Stack, new_model, new_session, wait_for

# More than the worker's pool has connections (64), and fewer than it has threads (100).
SPEAKING = 80


def test_50_runs_that_start_together_all_finish_and_hear_only_themselves(stack: Stack) -> None:
    """Two tenants with the same session ids; each answer is the run's own question."""
    sessions = [new_session() for _ in range(25)]
    agents = {tenant: stack.agent("fake-echo?interval=0.005", tenant=tenant) for tenant in ("demo", "other")}
    pairs = [(tenant, session_id) for tenant in agents for session_id in sessions]
    with ExitStack() as cleanup:
        sockets = {
            (tenant, session_id): cleanup.enter_context(stack.socket(session_id, tenant=tenant))
            for tenant, session_id in pairs
        }
        with stack.agents_paused():
            for tenant, session_id in pairs:
                stack.ask(agents[tenant], f"{tenant} in {session_id}", session_id=session_id)
        for (tenant, session_id), socket in sockets.items():
            turn = socket.turn().check()
            assert turn.order().endswith("Cc")
            assert json.loads(turn.text) == [{"role": "user", "content": f"{tenant} in {session_id}"}]
            assert {(event["tenant_id"], event["session_id"]) for event in turn} == {(tenant, session_id)}
        assert all(socket.lives() for socket in sockets.values())


def test_no_database_connection_is_held_while_models_speak(stack: Stack) -> None:
    """So many speak at once that connections would run out if each held one."""
    model = new_model("fake-stall?tokens=6")
    agent_id = stack.agent(model)
    asked = [stack.ask(agent_id)["task_id"] for _ in range(SPEAKING)]

    def speaking() -> bool:
        entries = [(entry["outcome"], entry["tokens"]) for entry in stack.model.entries(model)]
        return entries == [("running", 3)] * SPEAKING

    wait_for(speaking)
    in_use = """
        SELECT count(*) FROM pg_stat_activity
        WHERE usename = 'nooble_app' AND state <> 'idle' AND backend_type = 'client backend'
    """
    # The probe's and our own questions pass; no run's connection stays.
    wait_for(lambda: stack.rows(in_use), equal_to=[(0,)])
    assert {stack.status(task_id)["status"] for task_id in asked} == {"processing"}
    # The worker does other work meanwhile.
    other = stack.ask(stack.agent("fake?tokens=2"))
    assert stack.finished(other["task_id"])["output"]["text"] == answer_text(2)
    for task_id in asked:
        assert stack.cancel(task_id).json()["result"]["status"] == "cancelling"
    for task_id in asked:
        state = stack.finished(task_id)
        assert (state["status"], state["output"]["text"]) == ("cancelled", answer_text(3))
    wait_for(lambda: {entry["outcome"] for entry in stack.model.entries(model)} == {"cut"})


def test_messages_of_one_session_are_all_answered(stack: Stack) -> None:
    model, session_id = new_model("fake?tokens=3"), new_session()
    agent_id = stack.agent(model)
    with stack.socket(session_id) as socket:
        with stack.agents_paused():
            asked = [stack.ask(agent_id, f"m{n}", session_id=session_id)["task_id"] for n in range(5)]
        heard = [socket.turn()]
        while sum(event["event"] == "task_completed" for turn in heard for event in turn) < 5:
            heard.append(socket.turn())
    events = [event for turn in heard for event in turn]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    for task_id in asked:
        own = [event for event in events if event["task_id"] == task_id]
        assert "".join(
            e["data"]["token"] for e in own if e["event"] == "agent_response_token"
        ) == answer_text(3)
        assert own[-1]["event"] == "task_completed"
    assert len(stack.messages(session_id)) == 10
