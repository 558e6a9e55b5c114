"""What can be seen of a run's provider calls: their counts, and their spans."""

from __future__ import annotations

from core import metrics, tracing
from core.actions.observed import first_token
from execution.calls import Calls
from execution.providers.base import ProviderError
from execution.providers.registry import PROVIDERS


class SeenCalls:
    """A ledger's calls, seen on their way to it. Use it where the run's coroutine runs."""

    def __init__(self, ledger: Calls) -> None:
        self._ledger = ledger
        self._provider = ""  # of the call that is under way
        self._span: tracing.Span | None = None

    async def begin(self, provider: str, model: str) -> int | None:
        granted = await self._ledger.begin(provider, model)
        # Names that tenants choose are no label.
        self._provider = provider if provider in PROVIDERS else "own"
        asked = {"gen_ai.provider.name": provider, "gen_ai.request.model": model}
        self._span = tracing.begin("provider.call", "client", **asked)
        return granted

    async def end(self, error: ProviderError) -> None:
        self.over(type(error).__name__)
        await self._ledger.end(error)

    def speaks(self) -> None:
        """The first token of the answer is here."""
        first_token()
        if self._span is not None:
            self._span.event("first_token")

    def over(self, problem: str = "") -> None:
        """The call that is under way has ended; `problem` says why, unless its answer is whole."""
        if not self._provider:
            return
        metrics.PROVIDER_CALLS.add(self._provider, problem or "ok")
        self._provider = ""
        if self._span is not None:
            self._span.end(problem)
            self._span = None
