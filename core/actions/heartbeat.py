"""One statement every few seconds keeps the rows of all runs of this process its own."""

from __future__ import annotations

import logging
import threading
import uuid

from django.db import close_old_connections, connection

from core.actions import running
from core.actions.running import StopReason
from core.away import DATABASE_AWAY
from core.leases import RENEW_SECONDS
from core.models import Task
from core.tenancy import across_tenants

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_thread: threading.Thread | None = None


def start() -> None:
    """Renew from now on; in whichever process runs tasks (a fork has no thread of its parent)."""
    global _thread
    if _thread is not None and _thread.is_alive():
        return
    with _lock:
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_beat_forever, name="heartbeat", daemon=True)
            _thread.start()


def _beat_forever() -> None:
    pause = threading.Event()
    while not pause.wait(RENEW_SECONDS):
        try:
            beat()
        except DATABASE_AWAY as error:
            # Nobody can take the runs over while the database is away, and the sweepers wait for us
            # when it is back.
            logger.warning("the leases of tasks are not renewed: %s", error)
            connection.close()
        except Exception:
            logger.exception("the leases of tasks are not renewed")
        finally:
            close_old_connections()


def beat() -> None:
    """Renew all leases; stop what is to be cancelled, and what has become another worker's."""
    held = running.claimed()
    if not held:
        return
    with across_tenants():
        statuses = Task.renew(held.items())
    for task_id, attempt in held.items():
        if (reason := _reason(task_id, statuses)) is not None:
            running.stop(task_id, reason, attempt)


def _reason(task_id: uuid.UUID, statuses: dict[uuid.UUID, str]) -> StopReason | None:
    status = statuses.get(task_id)
    if status is None:
        return StopReason.LOST
    return StopReason.CANCELLED if status == Task.Status.CANCELLING else None
