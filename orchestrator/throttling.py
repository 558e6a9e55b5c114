"""Whether one more run may wait, and how long it will take: from what the queues have said last."""

from __future__ import annotations

import math

from core.broker.backlog import backlog, backlog_beyond
from core.selectors import tenant_limits
from orchestrator.errors import QueueFull

DOMAIN = "agent"
UNKNOWN_SECONDS = 8.0  # for an answer, until one has been measured
LONGEST_WAIT = 600  # seconds that we send anybody away for


def check_room(tenant_id: str, *, behind: int = 0) -> None:
    """Whether the tenant's backlog may grow; `behind` are those that the run would wait for in its session.

    Nobody is asked while the backlog is below its bound. Raises QueueFull.
    """
    bound = tenant_limits(tenant_id).max_waiting
    if bound is None:
        return
    found = backlog_beyond(DOMAIN, tenant_id, bound)
    if found is None and behind < bound:
        return
    waiting = max(behind, found.waiting if found is not None else 0)
    seconds = found.drained_in(waiting - bound + 1) if found is not None else None
    retry_after = min(LONGEST_WAIT, max(1, math.ceil(UNKNOWN_SECONDS if seconds is None else seconds)))
    raise QueueFull(details={"waiting": waiting, "limit": bound}, retry_after=retry_after)


def estimated_seconds(tenant_id: str, *, behind: int = 0) -> float:
    """How long a run that has just been published will take, its wait included.

    `behind` are the runs of its session that it waits for. What runs now says at which pace the queue
    moves: that of the tenant's cap, or of the workers where they are fewer.
    """
    found = backlog(DOMAIN, tenant_id)
    if found is None or found.seconds is None:
        return UNKNOWN_SECONDS
    ahead = max(0, found.waiting - 1)
    if found.running >= tenant_limits(tenant_id).max_running:
        ahead += 1  # one that runs has to end first
    wait = found.drained_in(ahead) or 0.0
    return max(0.1, round(wait + (behind + 1) * found.seconds, 1))
