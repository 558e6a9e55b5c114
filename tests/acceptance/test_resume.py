"""Coming back: what a resume token opens, and that nothing is missed or heard twice."""

from __future__ import annotations

import random

import pytest

from bench.fake_model import answer_text
from tests.acceptance.stack import Stack, Turn, new_session

SEED = 20261120


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=8&interval=0.002")


def first_turn(stack: Stack, agent_id: str, session_id: str) -> tuple[str, Turn]:
    """The creator's token and the events of the session's first turn."""
    with stack.socket(session_id) as socket:
        asked = stack.ask(agent_id, session_id=session_id)
        return asked["resume_token"], socket.turn().check()


def test_after_n_everything_from_n_plus_1_comes_and_then_what_is_new(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    token, turn = first_turn(stack, agent_id, session_id)
    for after in (0, 1, 3, len(turn) - 1, len(turn)):
        with stack.socket(session_id, token=token, after=after) as socket:
            assert socket.connection.subprotocol == "nooble.v1"
            assert socket.last_seq == len(turn)
            assert socket.take(len(turn) - after) == turn[after:]
            assert socket.lives()
    with stack.socket(session_id, token=token, after=3) as socket:
        assert socket.take(len(turn) - 3) == turn[3:]
        stack.ask(agent_id, session_id=session_id)
        following = socket.turn().check()
        assert following[0]["seq"] == len(turn) + 1


def test_without_after_only_what_is_new_comes(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    token, turn = first_turn(stack, agent_id, session_id)
    with stack.socket(session_id, token=token) as socket:
        stack.ask(agent_id, session_id=session_id)
        assert socket.turn().check()[0]["seq"] == len(turn) + 1


def test_the_token_of_the_connect_before_the_first_message_opens_everything(
    stack: Stack, agent_id: str
) -> None:
    session_id = new_session()
    with stack.socket(session_id) as socket:
        token = socket.token
        stack.ask(agent_id, session_id=session_id)
        turn = socket.turn()
    with stack.socket(session_id, token=token, after=0) as socket:
        assert socket.take(len(turn)) == turn


def test_a_late_token_opens_only_what_came_after_it(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    _, turn = first_turn(stack, agent_id, session_id)
    with stack.socket(session_id) as socket:
        assert socket.last_seq == len(turn)
        late = socket.token
        asked = stack.ask(agent_id, "after the late one came", session_id=session_id)
        following = socket.turn().check()
    for after in (0, 1, len(turn) - 1, len(turn)):
        with stack.socket(session_id, token=late, after=after) as socket:
            assert socket.take(len(following)) == following
            assert socket.lives()
    path = f"/api/v1/sessions/{session_id}/messages"
    shown = stack.request("GET", path, token=late).json()["items"]
    assert [(item["role"], item["task_id"]) for item in shown] == [
        ("user", asked["task_id"]),
        ("assistant", asked["task_id"]),
    ]


def test_coming_back_renews_the_token_but_opens_no_more(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    _, turn = first_turn(stack, agent_id, session_id)
    with stack.socket(session_id) as socket:
        token = socket.token
    for _ in range(3):
        with stack.socket(session_id, token=token) as socket:
            token = socket.token
            stack.ask(agent_id, session_id=session_id)
            socket.turn()
    with stack.socket(session_id, token=token, after=0) as socket:
        heard = socket.take(socket.last_seq - len(turn))
    assert [event["seq"] for event in heard] == list(range(len(turn) + 1, socket.last_seq + 1))


def test_a_client_that_is_dropped_again_and_again_misses_nothing(stack: Stack) -> None:
    """20 times in one answer; it comes back with the cursor and the token that it has."""
    session_id, chance = new_session(), random.Random(SEED)
    agent_id = stack.agent("fake?tokens=150&interval=0.01")
    asked = stack.ask(agent_id, session_id=session_id)
    token, heard = asked["resume_token"], Turn()
    for _ in range(20):
        with stack.socket(session_id, token=token, after=len(heard)) as socket:
            token = socket.token
            if not heard or heard[-1]["event"] != "task_completed":
                for _ in range(chance.randint(1, 3)):
                    heard.append(socket.receive())
                    if heard[-1]["event"] == "task_completed":
                        break
    if heard[-1]["event"] != "task_completed":
        with stack.socket(session_id, token=token, after=len(heard)) as socket:
            heard += socket.turn()
    assert heard.check().text == answer_text(150)
    assert heard[0]["seq"] == 1
    assert stack.status(asked["task_id"])["output"]["text"] == heard.text


# --- Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 999])
def test_after_without_a_token_is_refused(stack: Stack, agent_id: str, after: int) -> None:
    session_id = new_session()
    first_turn(stack, agent_id, session_id)
    for protocols in (None, ["nooble.v1"]):
        code, error = stack.refusal(session_id, after=after, protocols=protocols)
        assert (code, error["event"]) == (4403, "error")


@pytest.mark.parametrize(
    "after", ["", "x", "-1", "1.5", "1e3", "0x1", "+1", "%D9%A3", "1%00", "1%0a", "null"]
)
def test_an_after_that_is_no_seq_is_refused(stack: Stack, agent_id: str, after: str) -> None:
    with stack.socket(session_id := new_session()) as socket:
        token = socket.token
    code, error = stack.refusal(session_id, token=token, after=after)
    assert (code, error["event"]) == (4400, "error")
    assert error["data"].keys() == {"type", "message", "details"}


def test_a_foreign_or_altered_token_is_refused(stack: Stack, agent_id: str) -> None:
    session_id = new_session()
    token, _ = first_turn(stack, agent_id, session_id)
    another, _ = first_turn(stack, agent_id, new_session())
    with stack.socket(session_id, tenant="other") as namesake:
        foreign = namesake.token
    head, _, signature = token.partition("~")
    parts = head.split(".")
    earlier = ".".join([*parts[:-1], str(int(parts[-1]) + 1)])
    flipped = "A" if signature[0] != "A" else "B"
    for bad in (
        another,
        foreign,
        token[:-1],
        token + "A",
        f"{head}~{flipped}{signature[1:]}",
        f"{earlier}~{signature}",
        head,
        f"{head}~",
        "x",
        "~",
        "....~",
    ):
        stack.forget_counts("tokens")  # so many would be too many
        for after in (None, 0):
            code, error = stack.refusal(session_id, token=bad, after=after)
            assert (code, error["event"]) == (4403, "error"), bad
    with stack.socket(session_id, token=token, after=0) as socket:
        assert socket.take(1)[0]["seq"] == 1


def test_an_empty_token_is_refused(stack: Stack) -> None:
    code, error = stack.refusal(new_session(), protocols=["nooble.v1", "nooble.resume."])
    assert (code, error["event"]) == (4403, "error")
