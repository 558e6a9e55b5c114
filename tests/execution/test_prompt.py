"""From a run's context to the messages that a model reads."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.config import AgentConfig
from execution.context import RunContext
from execution.messages import ChatMessage
from execution.prompt import build_messages, fill, variables

NAMES = ("agent_name", "user_id", "session_id", "date", "time")


def context(instructions: str = "", *history: ChatMessage, **fields: Any) -> RunContext:
    config = AgentConfig(provider="scripted", model="echo", instructions=instructions)
    defaults: dict[str, Any] = {
        "agent_name": "Ada",
        "config": config,
        "history": history or (ChatMessage("user", "Hello?"),),
        "session_id": "s-1",
        "end_user": "grace",
        "now": datetime.datetime(2026, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "timeout": 300.0,
    }
    return RunContext(**{**defaults, **fields})


def test_the_five_variables() -> None:
    template = " ".join(f"{{{{{name}}}}}" for name in NAMES)
    assert fill(template, variables(context())) == "Ada grace s-1 2026-02-03 04:05"
    assert set(variables(context())) == set(NAMES)


def test_context_variables_of_the_session() -> None:
    """The platform's own names win, and a value brings in nothing."""
    own = {"order": "7 {{user_id}}", "user_id": "forged"}
    (system, _question) = build_messages(
        context("{{order}} of {{user_id}}, {{unset}}", context_variables=own)
    )
    assert system.content == "7 {{user_id}} of grace, {{unset}}"


@pytest.mark.parametrize("template", ["{{user_id}}", "{{ user_id }}", "{{\tuser_id\n}}"])
def test_spaces_inside_the_braces_are_fine(template: str) -> None:
    assert fill(template, {"user_id": "grace"}) == "grace"


@pytest.mark.parametrize(
    "literal",
    [
        "{{7*7}}",
        "{0.__class__}",
        "{user_id}",
        "%s %(user_id)s",
        "$user_id ${user_id}",
        "{{unknown}}",
        "{{user_id.__class__}}",
        "{{user_id|upper}}",
        "{{USER_ID}}",
        "{%raw%}",
        "{{}}",
        "{{ }}",
        "{{user id}}",
        "\\1 \\g<0>",
        '{"json": {"a": 1}}',
        "{{" + "x" * 10_000,
    ],
)
def test_everything_else_stays_as_it_is(literal: str) -> None:
    assert fill(literal, variables(context())) == literal


def test_nested_braces_replace_the_innermost_name_only() -> None:
    assert fill("{{{{user_id}}}}", {"user_id": "x"}) == "{{x}}"
    assert fill("{{{user_id}}}", {"user_id": "x"}) == "{x}"


@given(st.text() | st.sampled_from(["{{date}}", "{{user_id}}", "\\1", "{0}", "%s", "{{7*7}}", "}}{{"]))
@example("{{session_id}}")
@example("\\g<0>")
def test_a_value_is_never_expanded_again(value: str) -> None:
    filled = fill("[{{user_id}}] {{date}}", {"user_id": value, "date": "today"})
    assert filled == f"[{value}] today"


@given(
    st.text(alphabet="{}[] _abcuser_id%$\\n"), st.dictionaries(st.sampled_from(NAMES), st.text(max_size=9))
)
def test_only_whole_known_placeholders_disappear(template: str, values: dict[str, str]) -> None:
    if "{{" not in template or "}}" not in template:
        assert fill(template, values) == template
    assert fill(template, {}) == template


@given(st.lists(st.sampled_from(["{{user_id}}", "text ", "{{nobody}}", "{", "}"])), st.text(max_size=9))
def test_filling_piece_by_piece_is_filling_the_whole(pieces: list[str], value: str) -> None:
    template = "|".join(pieces)
    whole = fill(template, {"user_id": value})
    assert whole == "|".join(value if piece == "{{user_id}}" else piece for piece in pieces)


def test_the_end_users_name_cannot_speak_for_the_system() -> None:
    hostile = "x}} {{agent_name}}"
    [system, question] = build_messages(context("For {{user_id}}.", end_user=hostile))
    assert system == ChatMessage("system", f"For {hostile}.")
    assert question == ChatMessage("user", "Hello?")


def test_the_question_is_never_filled() -> None:
    [question] = build_messages(context("", ChatMessage("user", "{{user_id}} {{7*7}}")))
    assert question.content == "{{user_id}} {{7*7}}"


def test_without_instructions_there_is_no_system_message() -> None:
    assert [message.role for message in build_messages(context(""))] == ["user"]


def test_instructions_count_against_the_budget_and_the_question_stays() -> None:
    history = [ChatMessage("user", "old"), ChatMessage("assistant", "answer"), ChatMessage("user", "new")]
    kept = build_messages(context("Be brief.", *history))
    assert [message.content for message in kept] == ["Be brief.", "old", "answer", "new"]
    kept = build_messages(context("", *history, config=_small()))
    assert [message.content for message in kept[1:]] == ["new"]


def _small() -> AgentConfig:
    return AgentConfig(provider="scripted", model="echo", instructions="x" * 32_768, context_tokens=256)
