"""When a circuit opens, whom it lets through meanwhile, and what closes it."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import ExitStack

import pytest

from execution import circuit as circuits
from execution.circuit import FAILURES, OPEN_SECONDS, QUIET_SECONDS, Circuit, Circuits
from execution.providers.base import (
    DeadlineExceeded,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit(clock)


def succeed(circuit: Circuit) -> None:
    with circuit.call():
        pass


def fail(circuit: Circuit, error: BaseException | None = None) -> None:
    """One call that was let through and failed."""
    entered = False
    with contextlib.suppress(ProviderError, asyncio.CancelledError), circuit.call():
        entered = True
        raise error or ProviderUnavailable()
    assert entered


def refuses(circuit: Circuit) -> bool:
    """Whether a call is refused now; one that is let through is cancelled."""
    try:
        with circuit.call():
            raise asyncio.CancelledError
    except asyncio.CancelledError:
        return False
    except ProviderUnavailable as error:
        assert "circuit is open" in error.detail
        return True


def opened(circuit: Circuit, clock: Clock) -> None:
    for _ in range(FAILURES - 1):
        fail(circuit)
    clock.now += QUIET_SECONDS
    fail(circuit)
    assert circuit.is_open


@pytest.mark.parametrize("error", [ProviderUnavailable, ProviderTimeout])
def test_it_opens_after_failures_in_a_row(circuit: Circuit, clock: Clock, error: type[ProviderError]) -> None:
    for _ in range(FAILURES - 1):
        fail(circuit, error())
        clock.now += QUIET_SECONDS
    assert not refuses(circuit)
    fail(circuit, error())
    assert refuses(circuit)


def test_many_failures_at_once_do_not_open_it(circuit: Circuit, clock: Clock) -> None:
    """A burst of calls fails faster than it succeeds: the good ones take until their first token."""
    for _ in range(100):
        fail(circuit)
    clock.now += QUIET_SECONDS * 0.99
    fail(circuit)
    assert not refuses(circuit)
    succeed(circuit)
    clock.now += QUIET_SECONDS
    for _ in range(100):
        fail(circuit)
    assert not refuses(circuit)
    clock.now += QUIET_SECONDS
    fail(circuit)
    assert refuses(circuit)


def test_a_success_begins_the_count_anew(circuit: Circuit, clock: Clock) -> None:
    for _ in range(10):
        for _ in range(FAILURES - 1):
            fail(circuit)
            clock.now += QUIET_SECONDS
        succeed(circuit)
    assert not refuses(circuit)


@pytest.mark.parametrize(
    "error",
    [
        ProviderRateLimited(),
        ProviderRejected(),
        ProviderAuthenticationFailed(),
        ProviderProtocolError(),
        DeadlineExceeded(),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_providers_health_does_not_count(
    circuit: Circuit, clock: Clock, error: BaseException
) -> None:
    for _ in range(FAILURES * 2):
        fail(circuit, error)
        clock.now += QUIET_SECONDS
    assert not refuses(circuit)
    # Nor does it hide the failures between which it comes.
    for _ in range(FAILURES):
        fail(circuit, error)
        clock.now += QUIET_SECONDS
        fail(circuit)
    assert refuses(circuit)


def test_one_probe_goes_through_after_a_while(circuit: Circuit, clock: Clock) -> None:
    opened(circuit, clock)
    clock.now += OPEN_SECONDS * 0.99
    assert refuses(circuit)
    clock.now += OPEN_SECONDS * 0.01
    with circuit.call():
        assert circuit.is_open
        assert refuses(circuit)
        clock.now += OPEN_SECONDS * 10
        assert refuses(circuit)
    assert not circuit.is_open
    assert not refuses(circuit)


def test_a_probe_that_fails_opens_it_again(circuit: Circuit, clock: Clock) -> None:
    opened(circuit, clock)
    for _ in range(3):
        clock.now += OPEN_SECONDS
        fail(circuit)
        clock.now += OPEN_SECONDS * 0.99
        assert refuses(circuit)
        clock.now += OPEN_SECONDS * 0.01
    succeed(circuit)
    fail(circuit)
    assert not refuses(circuit)


@pytest.mark.parametrize("error", [DeadlineExceeded(), asyncio.CancelledError()])
def test_a_probe_that_told_nothing_leaves_its_place_to_the_next(
    circuit: Circuit, clock: Clock, error: BaseException
) -> None:
    opened(circuit, clock)
    clock.now += OPEN_SECONDS
    fail(circuit, error)
    assert circuit.is_open
    succeed(circuit)
    assert not circuit.is_open


@pytest.mark.parametrize("error", [ProviderRateLimited(), ProviderRejected(), ProviderProtocolError()])
def test_to_a_probe_any_answer_is_a_good_one(circuit: Circuit, clock: Clock, error: ProviderError) -> None:
    opened(circuit, clock)
    clock.now += OPEN_SECONDS
    fail(circuit, error)
    assert not circuit.is_open


def test_calls_from_before_it_opened(circuit: Circuit, clock: Clock) -> None:
    """A late failure keeps it open no longer, and a late success closes it."""
    with ExitStack() as late:
        late.enter_context(circuit.call())
        with pytest.raises(ProviderUnavailable), circuit.call():
            opened(circuit, clock)
            clock.now += OPEN_SECONDS
            raise ProviderUnavailable
        assert not refuses(circuit)
        assert circuit.is_open
    assert not circuit.is_open


def test_each_endpoint_and_model_has_its_own() -> None:
    known = Circuits()
    one = known.of("a", "m")
    assert known.of("a", "m") is one
    assert known.of("a", "n") is not one
    assert known.of("b", "m") is not one


def test_the_longest_unused_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits, "MOST", 3)
    known = Circuits()
    first, second = known.of("1", "m"), known.of("2", "m")
    known.of("3", "m")
    assert known.of("1", "m") is first
    known.of("4", "m")
    assert known.of("1", "m") is first
    assert known.of("2", "m") is not second
    for number in range(100):
        known.of(str(number), "m")
    assert len(known._known) == 3
