"""What the threads of a process know of a server that does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Breaker:
    """Not every thread has to wait in vain for itself.

    After a wait in vain nobody asks for `pause` seconds; then one thread tries, and the others go on
    without, until it has its answer or `patience` seconds have passed. A server that refuses at once is
    asked as ever: that costs no time.
    """

    def __init__(self, patience: float, pause: float, waited: type[Exception], away: type[Exception]) -> None:
        """`waited` is raised by a question that nobody answered; `away` is what the others get."""
        self._patience, self._pause = patience, pause
        self._waited, self._away = waited, away
        self._away_until = 0.0
        self._lock = threading.Lock()

    def is_away(self) -> bool:
        """Whether the server has just not answered; asks nobody."""
        return time.monotonic() < self._away_until

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around a question; raises `away` at once where there is no use in asking."""
        if self._away_until:
            with self._lock:
                if self.is_away():
                    raise self._away("it has just not answered")
                self._away_until = time.monotonic() + self._patience + self._pause
        away_until = 0.0
        try:
            yield
        except self._waited:
            away_until = time.monotonic() + self._pause
            raise
        finally:
            self._away_until = away_until
