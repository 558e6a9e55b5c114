"""The run against a server that fails: what is tried again, what is given up, who answers instead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from bench.fake_model import answer_text
from execution import circuit, runner
from execution.calls import Choice
from execution.messages import ChatMessage, Deadlines, Finished, ModelEvent, ModelRequest, TextDelta
from execution.providers import registry
from execution.providers.base import (
    DeadlineExceeded,
    Provider,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderNotConfigured,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from execution.providers.registry import Credentials, provider_for
from execution.runner import PAUSE, TRIES, run_agent
from tests.execution.conftest import TOKENS, Fake

UNAVAILABLE, TIMEOUT, RATE = "ProviderUnavailable", "ProviderTimeout", "ProviderRateLimited"
ANSWER = answer_text(TOKENS)


@dataclass
class Ledger:
    """The calls of one run, and the errors of those that failed before their first token."""

    begun: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    failure: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self, provider: str, model: str) -> None:
        assert len(self.failed) == len(self.begun), "calls never overlap"
        self.begun.append((provider, model))

    async def end(self, error: ProviderError) -> None:
        self.failed.append(type(error).__name__)
        assert len(self.failed) == len(self.begun)
        self.failure.set()


def asked(text: str = "Hello there", **deadlines: float) -> ModelRequest:
    limits: dict[str, float] = {"first_token": 5, "between_tokens": 0.3, "total": 20, **deadlines}
    return ModelRequest("", (ChatMessage("user", text),), deadlines=Deadlines(**limits))


def at(base_url: str, model: str, *, name: str = "openai", key: str = "k") -> Choice:
    return Choice(name, model, lambda: provider_for(name, Credentials(base_url, key)))


async def answer(
    request: ModelRequest, choices: Sequence[Choice], ledger: Ledger
) -> tuple[str, Finished | ProviderError]:
    """The text, and how the run ended."""
    text = ""
    try:
        async for event in run_agent(request, choices, ledger):
            if isinstance(event, Finished):
                return text, event
            text += event.text
    except ProviderError as error:
        assert error.before_first_token == (text == "")
        return text, error
    raise AssertionError("a run without an end")


@pytest.fixture(autouse=True)
def own_circuits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_circuits", circuit.Circuits())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between the tries."""
    monkeypatch.setattr(runner, "PAUSE", 0.002)


@pytest.fixture
def easily_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circuit opens without having failed for a while."""
    monkeypatch.setattr(circuit, "QUIET_SECONDS", 0.0)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the run would have waited; none passes."""
    told: list[float] = []

    async def sleep(seconds: float) -> None:
        told.append(seconds)

    loop = asyncio.get_running_loop
    monkeypatch.setattr(runner, "asyncio", SimpleNamespace(sleep=sleep, get_running_loop=loop))
    return told


class TestTries:
    async def test_a_call_that_answers_is_the_only_one(self, fake: Fake) -> None:
        ledger = Ledger()
        text, end = await answer(asked(), [at(fake.base_url, "fake"), at(fake.base_url, "other")], ledger)
        assert (text, getattr(end, "reason", None)) == (ANSWER, "stop")
        assert (ledger.begun, ledger.failed) == ([("openai", "fake")], [])
        assert len(await fake.entries("fake")) == 1
        assert await fake.entries("other") == []

    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize(
        ("model", "kind", "times"),
        [
            ("fake-429?fail_times=2", RATE, 2),
            ("fake-429?fail_times=1&retry_after=0", RATE, 1),
            ("fake-500?fail_times=4", UNAVAILABLE, 4),
            ("fake-502?fail_times=1", UNAVAILABLE, 1),
            ("fake-503?fail_times=3", UNAVAILABLE, 3),
            ("fake-504?fail_times=1", UNAVAILABLE, 1),
            ("fake-reset?fail_times=2", UNAVAILABLE, 2),
            ("fake-cut?fail_times=2&at=0", UNAVAILABLE, 2),
            ("fake-error?fail_times=1&at=0", UNAVAILABLE, 1),
            ("fake-error?fail_times=1&at=0&code=rate_limit_exceeded", RATE, 1),
            ("fake-silent?fail_times=1", TIMEOUT, 1),
            ("fake-slow-first?fail_times=1", TIMEOUT, 1),
            ("fake-comments?fail_times=1", TIMEOUT, 1),
        ],
    )
    async def test_what_fails_before_the_first_token_is_tried_again(
        self, fake: Fake, model: str, kind: str, times: int
    ) -> None:
        ledger = Ledger()
        text, end = await answer(asked(first_token=0.2), [at(fake.base_url, model)], ledger)
        assert isinstance(end, Finished)
        assert text == ANSWER
        assert ledger.failed == [kind] * times
        assert ledger.begun == [("openai", model)] * (times + 1)
        assert len(await fake.entries(model)) == times + 1

    @pytest.mark.usefixtures("quick")
    async def test_a_server_that_is_not_there(self, unused_tcp_port: int) -> None:
        ledger = Ledger()
        text, end = await answer(asked(), [at(f"http://127.0.0.1:{unused_tcp_port}/v1", "fake")], ledger)
        await registry.close()
        assert (text, type(end)) == ("", ProviderUnavailable)
        assert ledger.failed == [UNAVAILABLE] * TRIES

    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize(
        ("model", "kind"),
        [("fake-500", ProviderUnavailable), ("fake-429", ProviderRateLimited)],
    )
    async def test_not_for_ever(self, fake: Fake, model: str, kind: type[ProviderError]) -> None:
        ledger = Ledger()
        assert type((await answer(asked(), [at(fake.base_url, model)], ledger))[1]) is kind
        assert ledger.failed == [kind.__name__] * TRIES == [kind.__name__] * len(ledger.begun)
        assert len(await fake.entries(model)) == TRIES

    @pytest.mark.parametrize(
        ("model", "kind"),
        [
            ("fake-400", ProviderRejected),
            ("fake-401", ProviderAuthenticationFailed),
            ("fake-403", ProviderAuthenticationFailed),
            ("fake-404", ProviderRejected),
            ("fake-html", ProviderProtocolError),
            ("fake-garbage?at=0", ProviderProtocolError),
            ("fake-end?at=0", ProviderProtocolError),
        ],
    )
    async def test_what_would_fail_again_is_not(
        self, fake: Fake, model: str, kind: type[ProviderError]
    ) -> None:
        ledger = Ledger()
        choices = [at(fake.base_url, model), at(fake.base_url, "fake")]
        assert type((await answer(asked(), choices, ledger))[1]) is kind
        assert (ledger.begun, ledger.failed) == ([("openai", model)], [kind.__name__])
        assert len(await fake.entries(model)) == 1

    @pytest.mark.parametrize(
        ("model", "kind"),
        [
            ("fake-cut", ProviderUnavailable),
            ("fake-error", ProviderUnavailable),
            ("fake-error?code=rate_limit_exceeded", ProviderRateLimited),
            ("fake-stall", ProviderTimeout),
            ("fake-stall?comments=0.01", ProviderTimeout),
            ("fake-end", ProviderProtocolError),
            ("fake-garbage", ProviderProtocolError),
        ],
    )
    async def test_nothing_is_tried_again_after_the_first_token(
        self, fake: Fake, model: str, kind: type[ProviderError]
    ) -> None:
        ledger = Ledger()
        choices = [at(fake.base_url, model), at(fake.base_url, "fake")]
        text, error = await answer(asked(), choices, ledger)
        assert (text, type(error)) == (answer_text(TOKENS // 2), kind)
        assert (ledger.begun, ledger.failed) == ([("openai", model)], [])
        assert len(await fake.entries(model)) == 1

    async def test_the_pauses_double_and_are_never_the_same(self, fake: Fake, waits: list[float]) -> None:
        await asyncio.gather(*(answer(asked(), [at(fake.base_url, "fake-500")], Ledger()) for _ in range(50)))
        for step in range(TRIES - 1):
            pause = PAUSE * 2**step
            # In order of length: half of the runs may be a step further than the others.
            mine = sorted(waits)[step * 50 : (step + 1) * 50]
            assert len(set(mine)) == 50
            assert pause / 2 <= min(mine)
        assert len(waits) == 50 * (TRIES - 1)
        assert max(waits) <= PAUSE * 2 ** (TRIES - 2) * 1.5

    @pytest.mark.parametrize("status", [429, 503])
    async def test_retry_after_is_obeyed(self, fake: Fake, waits: list[float], status: int) -> None:
        model = f"fake-{status}?fail_times=2&retry_after=7"
        text, _ = await answer(asked(), [at(fake.base_url, model)], Ledger())
        assert text == ANSWER
        assert len(waits) == 2
        assert all(7 <= wait <= 7 + PAUSE * 2 for wait in waits)

    async def test_of_a_thousand_runs_that_meet_a_third_of_faults_ten_may_fail(
        self, fake: Fake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "PAUSE", 0.05)
        model = "fake-flaky?rate=0.3&status=500,502,503&first_token=0.1"
        ledgers = [Ledger() for _ in range(1_000)]
        # Faults come at once and answers later: all together, they keep a slow machine busy until the
        # circuit takes its silence for the provider's.
        few = asyncio.Semaphore(100)

        async def one(number: int, ledger: Ledger) -> str:
            async with few:
                text, _ = await answer(asked(f"Question {number}?"), [at(fake.base_url, model)], ledger)
                return text

        texts = await asyncio.gather(*(one(number, ledger) for number, ledger in enumerate(ledgers)))
        assert texts.count(ANSWER) >= 990
        calls = [call for ledger in ledgers for call in ledger.begun]
        assert len(calls) == len(await fake.entries(model)) > 1_300


class Deaf:
    """A provider that is away, and tells how long it might have taken."""

    name = endpoint = "deaf"

    def __init__(self) -> None:
        self.totals: list[float] = []

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        self.totals.append(request.deadlines.total)
        raise ProviderUnavailable
        yield


class TestDeadline:
    async def test_each_call_gets_what_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "PAUSE", 0.01)
        deaf = Deaf()
        choices = [Choice("a", "m", lambda: deaf), Choice("b", "m", lambda: deaf)]
        await answer(asked(total=20), choices, Ledger())
        assert len(deaf.totals) == 2 * TRIES
        assert deaf.totals[0] <= 20
        # Every pause is half of its kind at least.
        for before, after, step in zip(deaf.totals, deaf.totals[1:], range(TRIES - 1), strict=False):
            assert after <= before - 0.01 * 2**step / 2
        assert deaf.totals == sorted(deaf.totals, reverse=True)

    async def test_a_wait_that_would_pass_it_is_not_begun(self, fake: Fake, waits: list[float]) -> None:
        model = "fake-429?retry_after=30"
        _, error = await answer(asked(total=20), [at(fake.base_url, model)], Ledger())
        assert type(error) is ProviderRateLimited
        assert waits == []
        assert len(await fake.entries(model)) == 1

    @pytest.mark.usefixtures("quick")
    async def test_it_bounds_all_calls_together(self, fake: Fake) -> None:
        """The second call would stream for longer than what the first one left."""
        model = "fake-silent?fail_times=1&tokens=50&interval=0.02"
        text, error = await answer(asked(first_token=0.5, total=0.8), [at(fake.base_url, model)], Ledger())
        assert type(error) is DeadlineExceeded
        assert text
        assert len(text) < len(answer_text(50))

    async def test_a_call_that_used_it_up_is_the_last(self, fake: Fake) -> None:
        ledger = Ledger()
        choices = [at(fake.base_url, "fake-silent"), at(fake.base_url, "fake")]
        _, error = await answer(asked(total=0.2), choices, ledger)
        assert type(error) is DeadlineExceeded
        assert (len(ledger.begun), ledger.failed) == (1, ["DeadlineExceeded"])


class TestFallback:
    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize("model", ["fake-500", "fake-429", "fake-reset"])
    async def test_answers_when_the_first_is_given_up(self, fake: Fake, model: str) -> None:
        ledger = Ledger()
        choices = [at(fake.base_url, model), at(fake.base_url, "fake", name="groq")]
        text, end = await answer(asked(), choices, ledger)
        assert isinstance(end, Finished)
        assert text == ANSWER
        assert ledger.begun == [("openai", model)] * TRIES + [("groq", "fake")]
        assert len(ledger.failed) == TRIES

    @pytest.mark.usefixtures("quick")
    async def test_is_tried_again_like_the_first(self, fake: Fake) -> None:
        ledger = Ledger()
        choices = [at(fake.base_url, "fake-500"), at(fake.base_url, "fake-503?fail_times=2")]
        text, _ = await answer(asked(), choices, ledger)
        assert text == ANSWER
        assert len(ledger.begun) == TRIES + 3

    @pytest.mark.usefixtures("quick")
    async def test_its_own_error_is_told_when_it_fails_too(self, fake: Fake) -> None:
        choices = [at(fake.base_url, "fake-500"), at(fake.base_url, "fake-429")]
        assert type((await answer(asked(), choices, Ledger()))[1]) is ProviderRateLimited

    async def test_is_not_kept_waiting(
        self, fake: Fake, waits: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither for a pause that the first asks for, nor for calls that are silent for long."""
        ledger = Ledger()
        choices = [at(fake.base_url, "fake-429?retry_after=15"), at(fake.base_url, "fake")]
        assert (await answer(asked(), choices, ledger))[0] == ANSWER
        assert (waits, len(ledger.begun)) == ([], 2)
        monkeypatch.setattr(runner, "FALLBACK_AFTER", 0.1)
        ledger = Ledger()
        choices = [at(fake.base_url, "fake-silent"), at(fake.base_url, "fake")]
        assert (await answer(asked(first_token=0.2), choices, ledger))[0] == ANSWER
        assert (waits, len(ledger.begun)) == ([], 2)

    @pytest.mark.usefixtures("quick")
    async def test_that_is_not_configured_leaves_the_first_ones_error(self, fake: Fake) -> None:
        ledger = Ledger()
        choices = [
            at(fake.base_url, "fake-500"),
            Choice("groq", "fake", lambda: provider_for("groq", Credentials())),
        ]
        assert type((await answer(asked(), choices, ledger))[1]) is ProviderUnavailable
        assert len(ledger.begun) == TRIES

    async def test_does_not_hide_that_the_first_is_not_configured(self, fake: Fake) -> None:
        ledger = Ledger()
        choices = [
            Choice("groq", "fake", lambda: provider_for("groq", Credentials())),
            at(fake.base_url, "fake"),
        ]
        assert type((await answer(asked(), choices, ledger))[1]) is ProviderNotConfigured
        assert ledger.begun == []


@pytest.mark.usefixtures("quick", "easily_open")
class TestCircuit:
    async def open(self, fake: Fake, model: str = "fake-500") -> None:
        await answer(asked(), [at(fake.base_url, model)], Ledger())
        assert len(await fake.entries(model)) == TRIES == circuit.FAILURES

    async def test_an_open_one_lets_no_call_through(self, fake: Fake) -> None:
        await self.open(fake)
        ledger = Ledger()
        _, error = await answer(asked(), [at(fake.base_url, "fake-500")], ledger)
        assert type(error) is ProviderUnavailable
        assert "circuit is open" in str(error)
        assert (ledger.begun, ledger.failed) == ([], [])
        assert len(await fake.entries("fake-500")) == TRIES

    async def test_others_are_not_touched_by_it(self, fake: Fake) -> None:
        await self.open(fake)
        for choice in (at(fake.base_url, "fake"), at(fake.base_url, "fake", key="of another tenant")):
            assert (await answer(asked(), [choice], Ledger()))[0] == ANSWER
        ledger = Ledger()
        await answer(asked(), [at(fake.base_url, "fake-500", key="of another tenant")], ledger)
        assert len(ledger.begun) == TRIES

    async def test_the_fallback_is_asked_at_once(self, fake: Fake) -> None:
        await self.open(fake)
        ledger = Ledger()
        choices = [at(fake.base_url, "fake-500"), at(fake.base_url, "fake", name="groq")]
        assert (await answer(asked(), choices, ledger))[0] == ANSWER
        assert ledger.begun == [("groq", "fake")]

    async def test_a_run_that_waits_gives_up_when_it_opens(self, fake: Fake) -> None:
        ledgers = [Ledger() for _ in range(10)]
        ended = await asyncio.gather(
            *(answer(asked(), [at(fake.base_url, "fake-500")], ledger) for ledger in ledgers)
        )
        assert {type(error) for _, error in ended} == {ProviderUnavailable}
        assert len(await fake.entries("fake-500")) == sum(len(ledger.begun) for ledger in ledgers) < 20

    async def test_a_probe_that_is_answered_closes_it(
        self, fake: Fake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = f"fake-500?fail_times={TRIES + 1}"
        await self.open(fake, model)
        monkeypatch.setattr(circuit, "OPEN_SECONDS", 0.0)
        ledger = Ledger()
        assert type((await answer(asked(), [at(fake.base_url, model)], ledger))[1]) is ProviderUnavailable
        assert len(ledger.begun) == 1  # the probe is not repeated by its run
        assert (await answer(asked(), [at(fake.base_url, model)], Ledger()))[0] == ANSWER
        monkeypatch.setattr(circuit, "OPEN_SECONDS", 1e9)
        assert (await answer(asked(), [at(fake.base_url, model)], Ledger()))[0] == ANSWER

    async def test_its_words_hold_neither_address_nor_key(self, fake: Fake) -> None:
        provider: Provider = provider_for("openai", Credentials(fake.base_url, "sk-secret"))
        assert "sk-secret" not in provider.endpoint
        assert "127.0.0.1" not in provider.endpoint
        same = provider_for("groq", Credentials(fake.base_url, "sk-secret"))
        assert provider.endpoint == same.endpoint
        for other in (Credentials(fake.base_url, "sk-2"), Credentials(fake.base_url + "/x", "sk-secret")):
            assert provider_for("openai", other).endpoint != provider.endpoint


class TestLeaving:
    @pytest.mark.parametrize(
        "model", ["fake-silent", "fake-stall?at=0", "fake-stall", "fake-endless?interval=0.01"]
    )
    async def test_a_cancelled_run_leaves_its_call(self, fake: Fake, model: str) -> None:
        ledger = Ledger()
        running = asyncio.create_task(answer(asked(between_tokens=30), [at(fake.base_url, model)], ledger))
        await fake.entry(model, lambda entry: True)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        entry = await fake.ended(model)
        assert entry["outcome"] == "cut"
        assert entry["ended_at"] >= entry["received_at"]
        assert (len(ledger.begun), ledger.failed) == (1, [])

    async def test_a_cancelled_run_that_waits_makes_no_further_call(self, fake: Fake) -> None:
        model = "fake-429?retry_after=15"
        ledger = Ledger()
        running = asyncio.create_task(answer(asked(), [at(fake.base_url, model)], ledger))
        await asyncio.wait_for(ledger.failure.wait(), 5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(await fake.entries(model)) == len(ledger.begun) == 1

    async def test_a_reader_that_leaves_closes_the_call(self, fake: Fake) -> None:
        model = "fake-endless?interval=0.01"
        events: Any = run_agent(asked(), [at(fake.base_url, model)], Ledger())
        async with contextlib.aclosing(events):
            assert isinstance(await anext(events), TextDelta)
        assert (await fake.ended(model))["outcome"] == "cut"

    async def test_nothing_is_sent_that_the_ledger_does_not_hold(self, fake: Fake) -> None:
        class Broken(Ledger):
            async def begin(self, provider: str, model: str) -> None:
                raise OSError

        with pytest.raises(OSError):
            await answer(asked(), [at(fake.base_url, "fake")], Broken())
        assert await fake.entries("fake") == []
