"""`{domain}:{tenant_id}:{action}:{priority}`."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.ids import SYSTEM_TENANT
from core.queues.names import (
    DOMAINS,
    HIGH,
    LOW,
    NORMAL,
    NoQueue,
    Priority,
    QueueFilter,
    QueueName,
)

words = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
tenants = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True) | st.just(SYSTEM_TENANT)
names = st.builds(QueueName, words, tenants, words, st.sampled_from(["low", "normal", "high"]))

HOSTILE = [*":*?[],{}", "\x06\x16", "\x00", "\r\n", "\n", " ", "\t", "🎈", "A", "é", "\u2028"]


@given(names)
def test_a_name_is_read_back_as_it_was_written(name: QueueName) -> None:
    assert QueueName.parse(str(name)) == name


@given(st.text(max_size=80) | st.from_regex(r"[a-z0-9_:-]{0,60}\n?", fullmatch=True))
def test_whatever_is_accepted_is_written_back_unchanged(text: str) -> None:
    try:
        name = QueueName.parse(text)
    except ValueError:
        return
    assert str(name) == text
    assert text.count(":") == 3


@given(names, st.sampled_from(HOSTILE), st.data())
def test_a_hostile_character_anywhere_is_refused(name: QueueName, hostile: str, data: st.DataObject) -> None:
    text = str(name)
    position = data.draw(st.integers(0, len(text)))
    with pytest.raises(ValueError, match="not a queue name"):
        QueueName.parse(text[:position] + hostile + text[position:])


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":::",
        "agent",
        "agent:demo:execute",
        "agent:demo:execute:normal:",
        ":demo:execute:normal",
        "agent::execute:normal",
        "agent:demo::normal",
        "agent:demo:execute:",
        "agent:demo:execute:urgent",
        "agent:demo:execute:NORMAL",
        "agent:demo:execute:5",
        "agent:demo:execute:normal\n",
        "agent:demo\n:execute:normal",
        "agent\n:demo:execute:normal",
        "agent:-demo:execute:normal",
        "agent:demo-:execute:normal",
        "agent:_other:execute:normal",
        "agent:_system2:execute:normal",
        "1agent:demo:execute:normal",
        "agent:demo:" + "x" * 33 + ":normal",
        "agent:" + "x" * 41 + ":execute:normal",
        "ag-ent:demo:execute:normal",
    ],
    ids=repr,
)
def test_what_is_no_queue_name(text: str) -> None:
    with pytest.raises(ValueError, match="not a queue name"):
        QueueName.parse(text)


def test_the_system_has_queues_of_its_own() -> None:
    assert QueueName.parse("agent:_system:probe:high").tenant_id == SYSTEM_TENANT


def test_every_domain_is_a_queue_names_first_word() -> None:
    for domain in DOMAINS:
        assert QueueName.parse(f"{domain}:demo:execute:low").domain == domain


# --- Aliases ---------------------------------------------------------------------------------------

AGENT = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("agent", QueueFilter("agent")),
        ("agent:demo:execute:low", QueueFilter("agent", "demo", "execute", "low")),
        ("agent-management.tasks.demo", QueueFilter("orchestrator", "demo", "agent_bulk_update")),
        ("agent-management.tasks.demo." + AGENT, QueueFilter("orchestrator", "demo", "agent_bulk_update")),
        ("agent-management.validation.demo", QueueFilter("agent", "demo", "validate")),
        ("agent-management.validation.a-tenant.7", QueueFilter("agent", "a-tenant", "validate")),
        ("agent-management.notifications.demo", QueueFilter("orchestrator", "demo", "notice_relay")),
        ("agent_execution:demo", QueueFilter("agent", "demo", "execute")),
        ("agent_tools:demo:" + AGENT, QueueFilter("tool", "demo")),
        # A queue's name wins over an alias that looks like it.
        (
            "orchestrator:session:notice_relay:high",
            QueueFilter("orchestrator", "session", "notice_relay", "high"),
        ),
        ("orchestrator:tasks:demo:low", QueueFilter("orchestrator", "tasks", "demo", "low")),
    ],
)
def test_what_people_call_queues(text: str, asked: QueueFilter) -> None:
    assert QueueFilter.parse(text) == asked


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("agent-management.templates.demo", "a template answers at once"),
        ("agent_responses:demo:" + AGENT, "session's log and in its task's row"),
        ("agent_streaming:demo:" + AGENT, "session's log"),
        ("orchestrator:session:demo:s-1", "is in its log"),
        ("orchestrator:tasks:demo", "rows of a table"),
        ("orchestrator:system:notifications", "rows of the outbox"),
    ],
)
def test_what_is_called_a_queue_and_is_none(text: str, instead: str) -> None:
    with pytest.raises(NoQueue, match=instead):
        QueueFilter.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "celery",
        "agent-management.tasks.",
        "agent-management.tasks.demo.",
        "agent-management.tasks.-demo",
        "agent-management.tasks.demo.a.b",
        "agent-management.tasks._system",
        "agent-management.tasks",
        "agent-management.other.demo",
        "agent-management:tasks:demo",
        "agent_execution:demo:",
        "agent_execution:demo\n",
        "agent_execution:*",
        "agent_execution.demo",
        "agent_tools:demo:a b",
    ],
    ids=repr,
)
def test_what_nobody_calls_a_queue(text: str) -> None:
    with pytest.raises(ValueError, match="not a queue name") as refused:
        QueueFilter.parse(text)
    assert not isinstance(refused.value, NoQueue)


@given(names, names)
def test_a_whole_name_asks_for_itself(name: QueueName, other: QueueName) -> None:
    asked = QueueFilter.parse(str(name))
    assert asked.includes(name)
    assert asked.includes(other) == (name == other)
    assert QueueFilter(name.domain).includes(name)
    assert QueueFilter(name.domain, name.tenant_id, name.action).includes(name)
    assert not QueueFilter(name.domain, f"not-{name.tenant_id}").includes(name)


@pytest.mark.parametrize(("number", "word"), enumerate(["low"] * 3 + ["normal"] * 4 + ["high"] * 3))
def test_priorities_have_words(number: int, word: str) -> None:
    assert Priority.parse(number) == number
    assert Priority.parse(number).word == word


def test_words_stand_for_priorities_of_that_word() -> None:
    assert (Priority.parse("low"), Priority.parse("normal"), Priority.parse("high")) == (LOW, NORMAL, HIGH)
    assert [priority.word for priority in (LOW, NORMAL, HIGH)] == ["low", "normal", "high"]


@given(st.one_of(st.none(), st.booleans(), st.floats(), st.text(), st.binary(), st.lists(st.integers())))
@example("5")
@example("HIGH")
@example("high\n")
@example(5.0)
def test_whatever_else_is_given_as_a_priority_is_a_value_error(value: object) -> None:
    if value in ("low", "normal", "high"):
        return
    with pytest.raises(ValueError, match="low, normal, high or 0-9"):
        Priority.parse(value)  # type: ignore[arg-type]


@given(st.integers().filter(lambda number: not 0 <= number <= 9))
def test_there_are_ten_priorities(number: int) -> None:
    with pytest.raises(ValueError, match="low, normal, high or 0-9"):
        Priority.parse(number)
