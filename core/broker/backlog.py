"""How long tenants' backlogs are, as far as this process has heard.

Whoever publishes is told by the same answer: to know costs nothing. Only where a backlog was too long when
it was heard of is the broker asked, and not more than once a second.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import redis

from core import valkey
from core.broker.scripts import ROOT, Scripts

STALE_SECONDS = 1.0
MOST = 10_000  # backlogs that a process remembers


@dataclass(frozen=True, slots=True)
class Backlog:
    """Of one tenant in one domain: `seconds` is what one message takes of late; None where nobody knows."""

    waiting: int
    running: int
    seconds: float | None
    at: float  # of the monotonic clock

    def drained_in(self, messages: int) -> float | None:
        """The seconds in which so many messages more have ended, at the pace of those that run."""
        return None if self.seconds is None else messages * self.seconds / max(1, self.running)


_heard: dict[tuple[str, str], Backlog] = {}


def heard(domain: str, tenant_id: str, answer: list[Any]) -> Backlog:
    """What the broker has just said."""
    waiting, running, seconds = answer
    if len(_heard) >= MOST:
        _heard.clear()
    found = Backlog(int(waiting), int(running), float(seconds) if seconds else None, time.monotonic())
    _heard[domain, tenant_id] = found
    return found


def backlog(domain: str, tenant_id: str) -> Backlog | None:
    """As it was when this process heard of it last; None where it never has."""
    return _heard.get((domain, tenant_id))


def backlog_beyond(domain: str, tenant_id: str, bound: int) -> Backlog | None:
    """The backlog, where `bound` messages wait already. None where the broker cannot be asked, too."""
    found = backlog(domain, tenant_id)
    if found is None or found.waiting < bound:
        return None
    if time.monotonic() - found.at > STALE_SECONDS:
        try:
            found = heard(domain, tenant_id, _scripts().backlog(args=[ROOT, domain, tenant_id]))
        except redis.RedisError:
            return None
    return found if found.waiting >= bound else None


@functools.cache
def _scripts() -> Scripts:
    return Scripts(valkey.client())
