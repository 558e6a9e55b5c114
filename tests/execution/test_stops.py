"""An answer that ends before a word: however the provider cuts it into pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from hypothesis import given
from hypothesis import strategies as st

from execution.messages import Finished, ModelEvent, TextDelta, Usage
from execution.stops import stopped, until

END = Finished("length", Usage(1, 2))
letters = st.text("ab", min_size=1, max_size=4)


async def stream(pieces: list[str]) -> AsyncGenerator[ModelEvent, None]:
    for piece in pieces:
        yield TextDelta(piece)
    yield END


async def heard(pieces: list[str], stops: list[str]) -> tuple[list[str], ModelEvent]:
    answer = stream(pieces)
    first = await anext(answer)
    *deltas, last = [event async for event in stopped(first, answer, stops)]
    await answer.aclose()
    return [delta.text for delta in deltas if isinstance(delta, TextDelta)], last


@given(pieces=st.lists(letters, max_size=8), stops=st.lists(letters, min_size=1, max_size=4))
async def test_it_is_cut_where_the_whole_would_be(pieces: list[str], stops: list[str]) -> None:
    said, last = await heard(pieces, stops)
    whole = "".join(pieces)
    kept = until(whole, stops)
    assert "".join(said) == (whole if kept is None else kept)
    assert last == (END if kept is None else Finished("stop", None))
    assert "" not in said


async def test_only_what_may_begin_a_word_waits() -> None:
    assert await heard(["one", " tw", "o thr", "ee"], ["three"]) == (
        ["one", " tw", "o "],
        Finished("stop", None),
    )
    assert await heard(["one th", "ough"], ["three"]) == (["one ", "though"], END)
    assert await heard(["one th"], ["three"]) == (["one ", "th"], END)
