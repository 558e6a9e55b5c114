"""A provider without a model: deterministic and offline, for the demo and for tests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence

from execution.messages import ChatMessage, Finished, FinishReason, ModelEvent, ModelRequest, TextDelta, Usage
from execution.providers.base import DeadlineExceeded
from execution.stops import until

# A token is a word with the space before it; very long words are several tokens.
_TOKEN = re.compile(r"\s*\S{1,24}|\s+")
# Characters of the question that the demo quotes.
_QUOTED = 280
# Paragraphs of the `long` answer: about 1,000 tokens.
_PARAGRAPHS = 20


class Scripted:
    """Answers from the conversation itself, word by word.

    The model's name chooses what is said:

    - `demo`, and every name not below: says what it is, quotes the question and the one before
      it, and tells how to reach a real model;
    - `echo`: the user's last message, exactly;
    - `long`: about 1,000 tokens, enough time to press stop.

    The first token comes after `first_token` seconds and the others `interval` seconds apart.
    Usage is exact, in this provider's own tokens.
    """

    name = "scripted"
    endpoint = "scripted"

    def __init__(self, *, first_token: float = 0.02, interval: float = 0.015) -> None:
        self._first_token = first_token
        self._interval = interval

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The answer in tokens; see `Provider`."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        ends_at = started + request.deadlines.total
        answer = _answer(request)
        if request.stop and (kept := until(answer, request.stop)) is not None:
            answer = kept
        tokens = tokenize(answer)
        reason: FinishReason = "stop"
        if request.max_output_tokens is not None and len(tokens) > request.max_output_tokens:
            tokens = tokens[: request.max_output_tokens]
            reason = "length"
        for position, token in enumerate(tokens):
            due = started + self._first_token + position * self._interval
            await asyncio.sleep(max(0.0, min(due, ends_at) - loop.time()))
            if loop.time() >= ends_at:
                raise DeadlineExceeded("the script passed its total time", before_first_token=position == 0)
            yield TextDelta(token)
        prompt = sum(len(tokenize(message.content)) for message in request.messages)
        yield Finished(reason, Usage(prompt_tokens=prompt, completion_tokens=len(tokens)))

    async def models(self) -> None:
        """Every name is one: see above."""


def tokenize(text: str) -> list[str]:
    """Word-like tokens; joined they are the text again."""
    return _TOKEN.findall(text)


def _answer(request: ModelRequest) -> str:
    questions = [message.content for message in request.messages if message.role == "user"]
    if request.model == "echo":
        return questions[-1] if questions else ""
    if request.model == "long":
        return _long_answer()
    return _demo_answer(questions, request.messages)


def _demo_answer(questions: Sequence[str], messages: Sequence[ChatMessage]) -> str:
    parts = ["Hello! I am the offline demo agent: no model is connected, so I answer from a script."]
    if questions:
        parts.append(f"You wrote: “{_quoted(questions[-1])}”")
    if len(questions) > 1:
        parts.append(
            f"I remember this conversation: it has {len(messages)} messages that I can see, "
            f"and before this you wrote: “{_quoted(questions[-2])}”"
        )
    parts.append(
        "Everything around me is real, though: your message went through the queue to a worker, "
        "and these words are streamed to you one by one. Reload the page while I talk, and you "
        "will miss nothing."
    )
    parts.append(
        "To talk to a real model, stop and start again with OPENAI_API_KEY set: then it answers in my "
        "place. Any OpenAI-compatible server works too. For Ollama, set "
        "OPENAI_BASE_URL=http://127.0.0.1:11434/v1 and create an agent with the provider "
        '"openai" and the name of a model you have pulled.'
    )
    return "\n\n".join(parts)


def _quoted(text: str) -> str:
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…"


def _long_answer() -> str:
    paragraphs = [
        f"Paragraph {number} of {_PARAGRAPHS}. This is the long answer of the offline demo agent. "
        "It says nothing new, but it takes its time, so that you can watch how an answer is "
        "streamed, close the page and come back to it, or press stop in the middle; what was said "
        "until then is kept."
        for number in range(1, _PARAGRAPHS + 1)
    ]
    return "\n\n".join(paragraphs)
