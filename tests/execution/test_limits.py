"""How much fits into a request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from execution.limits import estimated_tokens, fit_history, message_tokens
from execution.messages import ChatMessage

messages = st.builds(ChatMessage, st.sampled_from(["user", "assistant"]), st.text(max_size=60))
histories = st.lists(messages, min_size=1, max_size=12)
budgets = st.integers(-50, 300)


def cost(kept: tuple[ChatMessage, ...]) -> int:
    return sum(message_tokens(message) for message in kept)


@given(st.text())
def test_every_text_weighs_something_and_nothing_weighs_nothing(text: str) -> None:
    assert (estimated_tokens(text) >= 1) == bool(text)
    assert message_tokens(ChatMessage("user", text)) > estimated_tokens(text)


@given(histories, budgets)
def test_the_newest_are_kept_in_order_and_the_last_always(history: list[ChatMessage], budget: int) -> None:
    kept = fit_history(history, budget)
    assert kept
    assert list(kept) == history[-len(kept) :]
    assert kept[-1] is history[-1]


@given(histories, budgets)
def test_the_budget_is_respected_unless_the_last_alone_is_too_long(
    history: list[ChatMessage], budget: int
) -> None:
    kept = fit_history(history, budget)
    assert len(kept) == 1 or cost(kept) <= budget


@given(histories, budgets)
def test_it_never_begins_with_an_answer(history: list[ChatMessage], budget: int) -> None:
    kept = fit_history(history, budget)
    assert len(kept) == 1 or kept[0].role == "user"


@given(histories, budgets)
def test_nothing_that_fits_is_left_out(history: list[ChatMessage], budget: int) -> None:
    kept = fit_history(history, budget)
    for length in range(len(kept) + 1, len(history) + 1):
        longer = tuple(history[-length:])
        assert longer[0].role == "assistant" or cost(longer) > budget


@given(histories)
def test_a_large_budget_keeps_all_from_the_first_question_on(history: list[ChatMessage]) -> None:
    kept = fit_history(history, 10**6)
    left_out = history[: len(history) - len(kept)]
    assert all(message.role == "assistant" for message in left_out)
