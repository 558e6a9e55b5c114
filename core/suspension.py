"""Stopping the work of a tenant, or of an agent, that was switched off."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from django.db.models import QuerySet

from core.actions.bus import execute
from core.actions.tasks import TaskCancelAction
from core.errors import CannotCancel
from core.models import Task
from core.models.task import FINAL, TaskStatus

BY = "suspension"  # who cancels, as the tasks' rows say it
# By then every process knows: a run that was let in, or begun, before that is there to be seen.
EVERYBODY_KNOWS = 1.5  # seconds


def stop_runs(runs: QuerySet[Task], is_suspended: Callable[[], bool]) -> None:
    """Cancel those of the tasks that are open, now and once more when nobody lets another one in.

    Done twice, or by two at once, it does the same.
    """
    for pause in (0.0, EVERYBODY_KNOWS):
        time.sleep(pause)
        if not is_suspended():
            return
        is_open = runs.exclude(status__in=(*FINAL, TaskStatus.CANCELLING))
        for task_id in list(is_open.values_list("pk", flat=True)):
            # One that has ended meanwhile is as it should be.
            with suppress(CannotCancel):
                execute(TaskCancelAction(task_id=task_id, by=BY))
