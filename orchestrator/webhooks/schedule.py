"""When a delivery is tried again, and when an endpoint is given up."""

from __future__ import annotations

import datetime
import random

_MINUTE, _HOUR = 60.0, 3_600.0

# Before each attempt, seconds since the one before: ten attempts in about three days.
PAUSES = (
    0.0,
    5.0,
    5 * _MINUTE,
    30 * _MINUTE,
    2 * _HOUR,
    5 * _HOUR,
    10 * _HOUR,
    14 * _HOUR,
    20 * _HOUR,
    24 * _HOUR,
)
JITTER = 0.1  # of a pause, more or less: what failed together does not come back together

# An endpoint is disabled when so many deliveries in a row have died, or when nothing was taken for so long.
MOST_DEAD = 5
LONGEST_FAILING = datetime.timedelta(days=5)

ROTATION = datetime.timedelta(hours=24)  # for so long a former secret signs, too


def next_pause(failures: int) -> datetime.timedelta | None:
    """How long to wait after so many failures; None: that was the last attempt."""
    if failures >= len(PAUSES):
        return None
    return datetime.timedelta(seconds=PAUSES[failures] * random.uniform(1 - JITTER, 1 + JITTER))
