"""What a socket's server tells of its connection, beyond ASGI."""

from __future__ import annotations

import time

EXTENSION = "nooble.link"  # where a server of ours puts the link, in the scope's `extensions`


class Link:
    """The connection under a socket. This one belongs to a server that tells nothing of it.

    `full` says that the client does not keep up: nothing more should be sent until `drained`.
    `reads` says whether the client is listened to: while it is not, its silence means nothing.
    """

    full = False
    reads = True

    def __init__(self) -> None:
        self.heard_at = time.monotonic()

    def heard(self) -> None:
        """The client has given a sign of life."""
        self.heard_at = time.monotonic()

    def ping(self) -> None:
        """Ask the client for a sign of life, below its messages."""

    def took(self) -> None:
        """One frame that came in is done with."""

    def is_stalled(self, seconds: float) -> bool:
        """Whether the client has taken next to nothing for so long."""
        return False

    async def drained(self) -> None:
        """Wait until the client has taken what was sent, or is gone."""


class Bucket:
    """At most `burst` at once, then `rate` a second."""

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._at = time.monotonic()

    def take(self, weight: float = 1) -> bool:
        """Whether there is room for so much more."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < weight:
            return False
        self._left -= weight
        return True
