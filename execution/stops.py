"""Ending an answer before a word that the caller has named."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from execution.messages import Finished, ModelEvent, TextDelta


async def stopped(
    first: ModelEvent, answer: AsyncGenerator[ModelEvent, None], stops: Sequence[str]
) -> AsyncIterator[ModelEvent]:
    """The stream that `first` begins and `answer` goes on with, up to the first of `stops`.

    Providers are asked to stop by themselves; this is for those that do not. What may be the beginning
    of such a word waits for what follows. Cut here, nobody knows what the call took.
    """
    event, held = first, ""
    while isinstance(event, TextDelta):
        text = held + event.text
        kept = until(text, stops)
        if kept is not None:
            if kept:
                yield TextDelta(kept)
            yield Finished("stop", None)
            return
        known = len(text) - _open_end(text, stops)
        held = text[known:]
        if known:
            yield TextDelta(text[:known])
        event = await anext(answer)
    if held:
        yield TextDelta(held)
    yield event


def until(text: str, stops: Sequence[str]) -> str | None:
    """`text` up to the first of `stops`, or None when there is none in it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


def _open_end(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `stops`."""
    longest = max(len(stop) for stop in stops) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0
