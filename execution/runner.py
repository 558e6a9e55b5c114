"""The run: from a context to a stream of model events. Asynchronous, and pure of Django."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from execution.calls import Calls, Choice
from execution.circuit import Circuit, Circuits
from execution.context import RunContext
from execution.messages import Deadlines, ModelEvent, ModelRequest
from execution.prompt import build_messages
from execution.providers.base import Provider, ProviderError, ProviderNotConfigured
from execution.stops import stopped

# Calls of one choice, and seconds between the first two; the pause doubles from call to call.
TRIES = 5
PAUSE = 0.5
# Seconds for which a choice is tried again while another one could answer instead.
FALLBACK_AFTER = 10.0

logger = logging.getLogger(__name__)

_circuits = Circuits()


def request_of(context: RunContext) -> ModelRequest:
    """What the model is asked."""
    config = context.config
    return ModelRequest(
        model=config.model,
        messages=build_messages(context),
        temperature=config.temperature,
        max_output_tokens=config.max_output_tokens,
        deadlines=Deadlines(total=context.timeout),
        stop=context.stop,
    )


async def run_agent(
    request: ModelRequest, choices: Sequence[Choice], calls: Calls
) -> AsyncIterator[ModelEvent]:
    """Yield the answer as it comes; the last item is `Finished`. Raises ProviderError.

    Before the first token, calls that found the provider away, busy or silent are made again, then
    the next choice is asked; after it nothing is, since the client has read the beginning. The
    request's `total` bounds all of it; its `model` gives way to the choice's.
    """
    answer, first = await _begun(request, choices, calls)
    # Nothing but the provider's own stream stands between its tokens and the reader.
    async with aclosing(answer):
        if request.stop:
            async for event in stopped(first, answer, request.stop):
                yield event
            return
        yield first
        async for event in answer:
            yield event


Begun = tuple[AsyncGenerator[ModelEvent, None], ModelEvent]


async def _begun(request: ModelRequest, choices: Sequence[Choice], calls: Calls) -> Begun:
    """The stream of the first choice that answers, and its first event."""
    now = asyncio.get_running_loop().time
    ends_at = now() + request.deadlines.total
    given_up: ProviderError | None = None
    for choice in choices:
        try:
            provider = choice.provider()
        except ProviderNotConfigured as error:
            if given_up is None:
                raise
            logger.warning("the fallback %s: %s", choice.provider_name, error.detail)
            raise given_up from None
        patience = ends_at if choice is choices[-1] else min(ends_at, now() + FALLBACK_AFTER)
        begun = await _tried(request, choice, provider, calls, ends_at, patience)
        if not isinstance(begun, ProviderError):
            return begun
        given_up = begun
        if now() >= ends_at:
            break
    assert given_up is not None
    raise given_up


async def _tried(
    request: ModelRequest, choice: Choice, provider: Provider, calls: Calls, ends_at: float, patience: float
) -> Begun | ProviderError:
    """The stream that the choice began, or why it was given up.

    No wait for another try may end after `patience` (loop time). Raises the errors that no other
    try or choice would mend.
    """
    now = asyncio.get_running_loop().time
    circuit = _circuits.of(provider.endpoint, choice.model)
    tried = 0
    while True:
        try:
            return await _called(request, choice, provider, calls, circuit, ends_at)
        except ProviderError as error:
            if not error.retryable:
                raise
            pause = PAUSE * 2**tried
            tried += 1
            # Half a pause to one and a half: callers that failed together do not come back together.
            wait = (pause / 2 if error.retry_after is None else error.retry_after) + random.uniform(0, pause)
            if tried == TRIES or circuit.is_open or now() + wait >= patience:
                return error
            name = type(error).__name__
            logger.info("%s %s: %s; again in %.1f s", choice.provider_name, choice.model, name, wait)
        await asyncio.sleep(wait)


async def _called(
    request: ModelRequest,
    choice: Choice,
    provider: Provider,
    calls: Calls,
    circuit: Circuit,
    ends_at: float,
) -> Begun:
    """One call up to its first event. Raises ProviderError."""
    begun = False
    try:
        with circuit.call():
            most = await calls.begin(choice.provider_name, choice.model)
            begun = True
            left = ends_at - asyncio.get_running_loop().time()
            deadlines = replace(request.deadlines, total=left)
            asked = replace(request, model=choice.model, deadlines=deadlines)
            if most is not None:
                asked = replace(asked, max_output_tokens=most)
            answer = provider.stream(asked)
            return answer, await anext(answer)
    except ProviderError as error:
        if begun:  # and not refused by the circuit
            await calls.end(error)
        raise
