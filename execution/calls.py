"""What a run is given to call models with: whom it may ask, and the ledger of its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from execution.providers.base import Provider, ProviderError


@dataclass(frozen=True, slots=True)
class Choice:
    """One model that may answer, under the names that the ledger knows it by.

    `provider` is called when the choice's turn comes; it may raise ProviderNotConfigured.
    """

    provider_name: str
    model: str
    provider: Callable[[], Provider]


class Calls(Protocol):
    """The ledger of one run: it hears of every provider call. The calls of a run never overlap.

    Whatever the ledger raises ends the run.
    """

    async def begin(self, provider: str, model: str) -> int | None:
        """A call follows. Nothing has been sent yet, and nothing is before this returns.

        Returns how many tokens its answer may have, where the ledger bounds it more than the request.
        """

    async def end(self, error: ProviderError) -> None:
        """The call that began last failed before its first token; another one may follow, or none.

        No other end is told here. Whoever reads the run's events sees by themselves whether the
        last call was whole, cut after its first token, or cancelled, and what had been said.
        """
