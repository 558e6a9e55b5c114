"""Circuits: what has stopped answering is not asked for a while, so that its runs fail at once.

A circuit stands for one model at one address with one credential, so that a tenant's broken
server or model name never closes anything to others. Circuits belong to the process and are
touched on its loop only.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from execution.providers.base import DeadlineExceeded, ProviderError, ProviderTimeout, ProviderUnavailable

# A circuit opens after so many failures in a row, when nothing has succeeded for so many seconds
# since the first of them: under load, failures in a row are common while every third call fails.
FAILURES = 5
QUIET_SECONDS = 2.0
# Seconds until an open circuit lets one call through.
OPEN_SECONDS = 10.0
# Circuits kept; the one that was longest unused goes first.
MOST = 1_000


class Circuit:
    """Closed, open, or half-open: then one call goes through, and its result decides."""

    __slots__ = ("_clock", "_failing_since", "_failures", "_opened_at", "_probing")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0  # in a row
        self._failing_since = 0.0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Open or half-open: the next call may be refused."""
        return self._opened_at is not None

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call until its first token. Raises ProviderUnavailable at once while open.

        Only what tells of the provider's health counts. Refused requests and rate limits (4xx) do
        not, nor does a run that had no time left or was cancelled. As a probe any answer is a
        good one.
        """
        probe = self._enter()
        try:
            yield
        except (ProviderUnavailable, ProviderTimeout):
            self._failed(probe)
            raise
        except DeadlineExceeded:
            raise
        except ProviderError:
            if probe:
                self._succeeded()
            raise
        else:
            self._succeeded()
        finally:
            if probe:
                self._probing = False

    def _enter(self) -> bool:
        """Whether the call is the probe."""
        if self._opened_at is None:
            return False
        if self._probing or self._clock() < self._opened_at + OPEN_SECONDS:
            raise ProviderUnavailable(f"the circuit is open after {self._failures} failures in a row")
        self._probing = True
        return True

    def _succeeded(self) -> None:
        self._failures = 0
        self._opened_at = None

    def _failed(self, probe: bool) -> None:
        now = self._clock()
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        broken = self._failures >= FAILURES and now >= self._failing_since + QUIET_SECONDS
        if probe or (self._opened_at is None and broken):
            self._opened_at = now


class Circuits:
    """The circuits of a process, by endpoint (see `Provider`) and model."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], Circuit] = OrderedDict()

    def of(self, endpoint: str, model: str) -> Circuit:
        key = (endpoint, model)
        circuit = self._known.get(key)
        if circuit is None:
            circuit = self._known[key] = Circuit(self._clock)
            if len(self._known) > MOST:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return circuit
