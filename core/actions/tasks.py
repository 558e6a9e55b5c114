"""The verbs of tasks, whatever they do."""

from __future__ import annotations

import uuid

from core.actions.base import Action, Result


class CancelledTask(Result):
    """`status` is `cancelled`, or `cancelling` while a worker stops the run."""

    task_id: uuid.UUID
    status: str


class TaskCancelAction(Action[CancelledTask]):
    """Stop a task, waiting or running; `only_if_queued` leaves one alone that has begun."""

    verb = "task.cancel"

    task_id: uuid.UUID
    by: str = "system"
    only_if_queued: bool = False


class RetriedTask(Result):
    """`task_id` is the new task's, `retry_of` the old one's."""

    task_id: uuid.UUID
    retry_of: uuid.UUID


class TaskRetryAction(Action[RetriedTask]):
    """Do the work of an ended task once more, as a new task."""

    verb = "task.retry"

    task_id: uuid.UUID
