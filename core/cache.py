"""A small in-process cache for what may be stale for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TimedCache(Generic[K, V]):
    """Values that live for `seconds`, at most `size` of them. A None is never kept."""

    def __init__(self, seconds: float, size: int = 10_000) -> None:
        self._seconds = seconds
        self._size = size
        self._kept: dict[K, tuple[float, V]] = {}

    def peek(self, key: K) -> V | None:
        """The kept value, if it still lives: for those who must not wait."""
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] > time.monotonic() else None

    def get(self, key: K, load: Callable[[K], V | None]) -> V | None:
        """The kept value, or what `load` finds now."""
        now = time.monotonic()
        kept = self.peek(key)
        if kept is not None:
            return kept
        value = load(key)
        if value is None:
            self._kept.pop(key, None)
            return None
        if len(self._kept) >= self._size:
            self._kept.clear()
        self._kept[key] = (now + self._seconds, value)
        return value

    def forget(self, key: K) -> None:
        """What is kept of it is known to be old."""
        self._kept.pop(key, None)

    def clear(self) -> None:
        self._kept.clear()
