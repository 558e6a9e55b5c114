"""What may be stale for a moment."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from core import cache
from core.cache import TimedCache


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Turns the caches' clock on, by seconds."""
    now = [1_000.0]
    monkeypatch.setattr(cache, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def test_a_value_is_kept_for_its_time_and_then_loaded_again(sleep: Callable[[float], None]) -> None:
    values = iter(["old", "new"])
    kept: TimedCache[str, str] = TimedCache(seconds=1.0)
    assert kept.get("key", lambda key: next(values)) == "old"
    sleep(0.99)
    assert kept.get("key", lambda key: next(values)) == "old"
    sleep(0.01)
    assert kept.get("key", lambda key: next(values)) == "new"


def test_reading_a_value_does_not_lengthen_its_life(sleep: Callable[[float], None]) -> None:
    loads: list[str] = []

    def load(key: str) -> int:
        loads.append(key)
        return len(loads)

    kept: TimedCache[str, int] = TimedCache(seconds=1.0)
    for _ in range(5):
        kept.get("key", load)
        sleep(0.4)
    assert len(loads) == 2


def test_keys_are_kept_apart(sleep: Callable[[float], None]) -> None:
    kept: TimedCache[str, str] = TimedCache(seconds=1.0)
    assert [kept.get(key, str.upper) for key in ("a", "b", "a")] == ["A", "B", "A"]


def test_what_was_not_found_is_looked_for_again(sleep: Callable[[float], None]) -> None:
    values = iter([None, "there"])
    kept: TimedCache[str, str] = TimedCache(seconds=1.0)
    assert kept.get("key", lambda key: next(values)) is None
    assert kept.get("key", lambda key: next(values)) == "there"


def test_what_is_gone_is_forgotten(sleep: Callable[[float], None]) -> None:
    values = iter(["there", None, None])
    kept: TimedCache[str, str] = TimedCache(seconds=1.0)
    kept.get("key", lambda key: next(values))
    sleep(1)
    assert kept.get("key", lambda key: next(values)) is None
    assert kept.get("key", lambda key: next(values)) is None


def test_an_error_while_loading_is_not_kept() -> None:
    kept: TimedCache[str, str] = TimedCache(seconds=1.0)
    with pytest.raises(ZeroDivisionError):
        kept.get("key", lambda key: str(1 / 0))
    assert kept.get("key", lambda key: "there") == "there"


def test_it_never_grows_beyond_its_size() -> None:
    kept: TimedCache[int, int] = TimedCache(seconds=1.0, size=10)
    for number in range(1_000):
        assert kept.get(number, lambda key: key) == number
        assert len(kept._kept) <= 10


def test_clear_forgets_everything() -> None:
    values = iter(["old", "new"])
    kept: TimedCache[str, str] = TimedCache(seconds=1.0)
    kept.get("key", lambda key: next(values))
    kept.clear()
    assert kept.get("key", lambda key: next(values)) == "new"
