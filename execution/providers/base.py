"""What every model provider is: one streaming method, and errors with names."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar, Protocol

from execution.messages import ModelEvent, ModelRequest


class Provider(Protocol):
    """A way to reach models.

    `stream` yields `TextDelta`s as they arrive and one `Finished` at the end, or raises a
    `ProviderError`. Cancelling the consumer (`aclose()` or task cancellation) closes the
    connection to the provider at once.

    `endpoint` is the same word for all that fails together: one address with one credential. It
    tells neither of them.
    """

    name: str
    endpoint: str

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]: ...

    async def models(self) -> frozenset[str] | None:
        """The names of the models there are, or None when nobody keeps a list. Raises ProviderError."""


class ProviderError(Exception):
    """A call that did not give an answer. The class name is the `error_type` clients see.

    `message` is safe to show to an end user: it never holds keys, addresses or provider text.
    `detail` is for the log; `said` are the provider's own words, which may quote what it was asked: for
    whoever looks for them. `before_first_token` says whether nothing had been streamed yet.
    `retry_after` (seconds) is what the provider asked for, if it did.
    """

    message: ClassVar[str] = "The model provider failed."
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str = "",
        *,
        said: str = "",
        before_first_token: bool = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail or self.message)
        self.detail = detail
        self.said = said
        self.before_first_token = before_first_token
        self.retry_after = retry_after


class ProviderUnavailable(ProviderError):
    """No connection, a connection cut, or an answer of 5xx."""

    message = "The model provider cannot be reached right now."
    retryable = True


class ProviderTimeout(ProviderError):
    """A wait passed its bound: connect, first token, or between tokens."""

    message = "The model provider did not answer in time."
    retryable = True


class DeadlineExceeded(ProviderError):
    """The whole run passed its bound."""

    message = "The run took longer than it may."


class ProviderRateLimited(ProviderError):
    """429."""

    message = "The model provider is over its rate limit."
    retryable = True


class ProviderAuthenticationFailed(ProviderError):
    """401 or 403."""

    message = "The model provider refused our credentials."


class ProviderRejected(ProviderError):
    """Any other 4xx: the request, the model name or the context is not acceptable."""

    message = "The model provider rejected the request."


class ProviderProtocolError(ProviderError):
    """An answer that is not the protocol: bad JSON, a stream without an end, an over-long line."""

    message = "The model provider sent an answer that could not be read."


class ProviderAddressRefused(ProviderError):
    """A tenant's base URL leads into a network that the operator has not opened."""

    message = "The model provider's address is not a public one."


class ProviderNotConfigured(ProviderError):
    """No key or no such provider for this tenant."""

    message = "The model provider is not configured."
