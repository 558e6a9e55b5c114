"""The scripted provider: the same words each time, and the manners of a real one."""

from __future__ import annotations

import time

import pytest

from execution.messages import ChatMessage, Deadlines, Finished, ModelRequest, TextDelta, Usage
from execution.providers.base import DeadlineExceeded
from execution.providers.scripted import Scripted, tokenize

FAST = Scripted(first_token=0, interval=0)


async def answer(provider: Scripted, request: ModelRequest) -> tuple[list[str], Finished]:
    events = [event async for event in provider.stream(request)]
    last = events.pop()
    assert isinstance(last, Finished)
    return [event.text for event in events if isinstance(event, TextDelta)], last


def ask(model: str, *texts: str, **options: object) -> ModelRequest:
    messages = tuple(
        ChatMessage("assistant" if position % 2 else "user", text) for position, text in enumerate(texts)
    )
    return ModelRequest(model, messages, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["hello there", "  two\n\nlines\t ", "x" * 100, "世界 🎈", " ", "a\u2028b", "¿Qué tal?"]
)
async def test_echo_returns_the_message_exactly(text: str) -> None:
    pieces, last = await answer(FAST, ask("echo", "before", "answer", text))
    assert "".join(pieces) == text
    assert all(pieces)
    assert last.reason == "stop"


async def test_usage_counts_its_own_tokens() -> None:
    pieces, last = await answer(FAST, ask("echo", "one two", "three", "four five six"))
    assert pieces == ["four", " five", " six"]
    assert last.usage == Usage(prompt_tokens=6, completion_tokens=3, accuracy="exact")


async def test_demo_quotes_the_question_and_tells_how_to_reach_a_model() -> None:
    text = "".join((await answer(FAST, ask("demo", "What is your name?")))[0])
    assert "What is your name?" in text
    assert "OPENAI_API_KEY" in text
    assert "offline" in text


async def test_demo_remembers_the_question_before() -> None:
    text = "".join((await answer(FAST, ask("demo", "I am Ada.", "Hello.", "Who am I?")))[0])
    assert "I am Ada." in text
    assert "Who am I?" in text


async def test_demo_shortens_long_questions() -> None:
    text = "".join((await answer(FAST, ask("demo", "x" * 32_768)))[0])
    assert len(text) < 2_000


@pytest.mark.parametrize("model", ["demo", "long", "anything-else"])
async def test_answers_are_the_same_each_time(model: str) -> None:
    assert await answer(FAST, ask(model, "Hello")) == await answer(FAST, ask(model, "Hello"))


async def test_long_has_about_a_thousand_tokens() -> None:
    pieces, _ = await answer(FAST, ask("long", "Hello"))
    assert 900 <= len(pieces) <= 1_200


async def test_without_a_question() -> None:
    messages = (ChatMessage("system", "Be brief."),)
    assert (await answer(FAST, ModelRequest("demo", messages)))[0]
    assert await answer(FAST, ModelRequest("echo", messages)) == ([], Finished("stop", Usage(2, 0)))


async def test_the_output_limit_holds() -> None:
    pieces, last = await answer(FAST, ask("long", "Hello", max_output_tokens=7))
    assert (len(pieces), last) == (7, Finished("length", Usage(1, 7)))


async def test_a_limit_that_just_suffices_is_no_cut() -> None:
    _, last = await answer(FAST, ask("echo", "one two", max_output_tokens=2))
    assert last.reason == "stop"


async def test_the_schedule_is_kept() -> None:
    started = time.monotonic()
    await answer(Scripted(first_token=0.05, interval=0.01), ask("echo", "one two three four five"))
    assert 0.09 <= time.monotonic() - started < 0.5


async def test_the_total_deadline_holds() -> None:
    provider = Scripted(first_token=0, interval=0.02)
    with pytest.raises(DeadlineExceeded) as caught:
        await answer(provider, ask("long", "Hello", deadlines=Deadlines(total=0.1)))
    assert caught.value.before_first_token is False


def test_tokens_join_to_the_text() -> None:
    text = " A word, a veryveryveryveryveryveryverylongword\n\n and 12 spaces:            end \n"
    assert "".join(tokenize(text)) == text
