"""The run: from a context to a stream of model events. Asynchronous, and pure of Django."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from execution.context import RunContext
from execution.messages import Deadlines, ModelEvent, ModelRequest
from execution.prompt import build_messages
from execution.providers.base import Provider


def request_of(context: RunContext) -> ModelRequest:
    """What the model is asked."""
    config = context.config
    return ModelRequest(
        model=config.model,
        messages=build_messages(context),
        temperature=config.temperature,
        max_output_tokens=config.max_output_tokens,
        deadlines=Deadlines(total=context.timeout),
    )


async def run_agent(request: ModelRequest, provider: Provider) -> AsyncIterator[ModelEvent]:
    """Yield the answer as it comes; the last item is `Finished`. Raises ProviderError."""
    async with aclosing(provider.stream(request)) as events:
        async for event in events:
            yield event
