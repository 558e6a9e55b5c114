"""One attempt's provider calls in the ledger, each with room in the tenant's budgets where it has any."""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace

from django.db import OperationalError, connection

from agents.selectors import agent_version
from core.budgets import Need, refuse_exhausted
from core.errors import NoobleError
from core.ledger import Call, close_call, fail_call, forget_call, open_call
from core.models import Task
from core.prices import price_of
from core.selectors import tenant_limits
from core.tenancy import current_tenant_id
from execution.limits import most_tokens
from execution.messages import ChatMessage, ModelRequest, Usage
from execution.providers.base import (
    DeadlineExceeded,
    ProviderError,
    ProviderProtocolError,
    ProviderTimeout,
)

TRIES, RETRY_SECONDS = 30, 1.0  # of writing a row while the database is away
# Tokens of an answer for which room is reserved where nobody has bounded it.
UNBOUNDED_OUTPUT = 8_192
# While others hold the rest of a budget: so long a call waits for some of it, looking so often.
ROOM_SECONDS, ROOM_PAUSE = 10.0, 0.25
# Before the first token: errors of providers that may have worked, and will bill it.
_TAKEN = (ProviderTimeout, ProviderProtocolError, DeadlineExceeded)


def check_budgets(agent_id: uuid.UUID, version_id: int, end_user: str, texts: Iterable[str]) -> None:
    """Before a run of the current tenant's is accepted: whether its first call could have room at all.

    `texts` is what is said in it. Raises BudgetExhausted, and NoPrice. No query without budgets.
    """
    tenant_id = current_tenant_id()
    if not tenant_limits(tenant_id).has_budgets:
        return
    config = agent_version(version_id).config
    said = (ChatMessage("user", text) for text in (config.instructions, *texts) if text)
    need = Need(most_tokens(said), config.max_output_tokens or UNBOUNDED_OUTPUT)
    price = price_of(tenant_id, config.provider, config.model, need.prompt)
    refuse_exhausted(tenant_id, agent_id, end_user, need, price)


class AttemptCalls:
    """The ledger of one attempt, and the calls that were made of it (`execution.calls.Calls`).

    A call is written before it begins. With budgets its row holds the most that it can take, and the
    provider is told how many tokens the answer may have; the caller settles the last one.
    """

    def __init__(
        self, task: Task, request: ModelRequest, *, agent_id: uuid.UUID, session_id: str, end_user: str
    ) -> None:
        self._row = Call(task, 1, agent_id, session_id, end_user, provider="", model="")
        self._need: Need | None = None
        if tenant_limits(task.tenant_id).has_budgets:
            output = request.max_output_tokens or UNBOUNDED_OUTPUT
            self._need = Need(most_tokens(request.messages), output)
        self._granted: int | None = None  # tokens of the answer to the call that was written last
        self._waits = False  # whether that call is yet to begin
        self._refusal: NoobleError | None = None
        self.made = 0  # the number of the last call that was made
        self.is_open = False  # whether nobody has said yet how it ended

    def write(self, provider: str, model: str) -> None:
        """The row of the first call, which follows; none yet where it is refused, or waits for room."""
        self._write(1, provider, model, patient=True)

    async def begin(self, provider: str, model: str) -> int | None:
        """The first call has its row already; others wait for theirs, as long as the run may take.

        Raises BudgetExhausted, and NoPrice.
        """
        if self._waits and (self._row.provider, self._row.model) != (provider, model):
            # Another model answers in its place, at a price of its own.
            await self._in_thread(self._forget)
            self._waits = False
        now = asyncio.get_running_loop().time
        until = now() + ROOM_SECONDS
        while not self._waits:
            if self._refusal is not None:
                raise self._refusal
            patient = now() < until
            await self._in_thread(
                functools.partial(self._write, self.made + 1, provider, model, patient=patient)
            )
            if not self._waits and self._refusal is None:
                await asyncio.sleep(ROOM_PAUSE)
        # Not before: a run that was cancelled meanwhile has not made this call.
        self.made, self.is_open, self._waits = self._row.number, True, False
        return self._granted

    async def end(self, error: ProviderError) -> None:
        """It gave no answer: what it took stays unknown."""
        self.is_open = False
        if self._granted is not None:
            refused = not isinstance(error, _TAKEN)
            await self._in_thread(functools.partial(fail_call, self._row.task, self.made, refused=refused))

    @property
    def is_cut_short(self) -> bool:
        """Whether the budgets, and not who asks, bound the answer."""
        return self._need is not None and self._granted is not None and self._granted < self._need.output

    def bounded(self, usage: Usage) -> Usage:
        """What we have counted ourselves: it cannot be more than was granted."""
        if self._granted is None:
            return usage
        return replace(usage, completion_tokens=min(usage.completion_tokens, self._granted))

    def settle(self, usage: Usage) -> None:
        """In the settling transaction: what the last call took. One that was never made is forgotten.

        Rolled back, the transaction is begun again: nothing of this object changes here.
        """
        if self._waits:
            self._forget()
        elif self.is_open:
            close_call(
                self._row.task,
                self.made,
                provider=self._row.provider,
                model=self._row.model,
                held=self._granted is not None,
                **asdict(usage),
            )

    def _write(self, number: int, provider: str, model: str, *, patient: bool) -> None:
        row = replace(self._row, number=number, provider=provider, model=model)
        try:
            grant = open_call(row, self._need, patient=patient)
        except NoobleError as error:
            self._refusal = error  # for whoever begins the call
            return
        if grant is not None:
            self._row, self._granted = replace(row, number=grant.call), grant.output
            self._waits = True

    def _forget(self) -> None:
        forget_call(self._row.task, self._row.number, held=self._granted is not None)

    async def _in_thread(self, write: Callable[[], None]) -> None:
        """A cancel waits for it: a row that nobody knows of would never be settled."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._patiently, write))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing
            raise

    def _patiently(self, write: Callable[[], None]) -> None:
        for tries_left in reversed(range(TRIES)):
            try:
                write()
                return
            except OperationalError:
                if not tries_left:
                    raise
                time.sleep(RETRY_SECONDS)
            finally:
                connection.close()
