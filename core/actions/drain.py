"""A worker that is told to stop finishes what it has, for a while; then others go on with it."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from core.actions import running

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 15.0  # less than a supervisor waits before it kills


def begin(how: str, **_: Any) -> None:
    """Celery's signal `worker_shutting_down`; `how` is Warm (SIGTERM), Soft or Cold.

    Killed before the hand-over: the leases run out, and a crash is counted.
    """
    running.draining.set()
    threading.Thread(target=_hand_over, args=[how], name="drain", daemon=True).start()


def _hand_over(how: str) -> None:
    if how == "Warm":
        time.sleep(DRAIN_SECONDS)
    if left := len(running.claimed()):
        logger.warning("%s runs are handed over", left)
    running.hand_over()
