"""The task: a queued action and the guarded state machine of its life."""

from __future__ import annotations

import uuid
from typing import Any

from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from core.ids import uuid7
from core.models.base import TenantModel


class TaskStatus(models.TextChoices):
    PENDING = "pending", _("pending")
    QUEUED = "queued", _("queued")
    PROCESSING = "processing", _("processing")
    WAITING = "waiting", _("waiting")
    CANCELLING = "cancelling", _("cancelling")
    COMPLETED = "completed", _("completed")
    FAILED = "failed", _("failed")
    CANCELLED = "cancelled", _("cancelled")


CLAIMABLE = (TaskStatus.PENDING, TaskStatus.QUEUED)
RUNNING = (TaskStatus.PROCESSING, TaskStatus.CANCELLING)
FINAL = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


class Task(TenantModel):
    """A queued action: written in the transaction that asked for it, run by a worker, settled once.

    Arrows, each a compare-and-set update that changes one row or did not happen; nothing else
    assigns a status, and the clock is the database's:

    pending → queued                      `mark_queued`: handed to the broker
    pending, queued → processing          `claim`
    pending, queued, waiting → cancelled  `cancel_unstarted`
    processing → cancelling               `ask_to_cancel`
    processing → completed, failed        `settle`
    cancelling → cancelled                `settle`
    """

    Status = TaskStatus

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    global_task_id = models.UUIDField(_("root task"), editable=False)
    retry_of = models.ForeignKey(
        "self", verbose_name=_("retry of"), null=True, on_delete=models.SET_NULL, related_name="retries"
    )
    action = models.CharField(_("action"), max_length=64)
    payload = models.JSONField(_("payload"))
    callback = models.JSONField(_("callback"), null=True)
    queue = models.CharField(_("queue"), max_length=128)
    priority = models.PositiveSmallIntegerField(_("priority"), validators=[MaxValueValidator(9)])
    status = models.CharField(
        _("status"), max_length=10, choices=TaskStatus.choices, default=TaskStatus.PENDING
    )
    attempt = models.PositiveIntegerField(_("attempt"), default=0)
    agent_id = models.UUIDField(_("agent"), null=True)
    session_id = models.CharField(_("session"), max_length=64, blank=True)
    result = models.JSONField(_("result"), null=True)
    error = models.JSONField(_("error"), null=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    started_at = models.DateTimeField(_("started at"), null=True)
    finished_at = models.DateTimeField(_("finished at"), null=True)
    cancelled_at = models.DateTimeField(_("cancelled at"), null=True)
    cancelled_by = models.CharField(_("cancelled by"), max_length=255, blank=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("task")
        verbose_name_plural = _("tasks")
        constraints = [
            models.CheckConstraint(name="task_status", condition=models.Q(status__in=TaskStatus.values)),
            models.CheckConstraint(name="task_priority", condition=models.Q(priority__lte=9)),
        ]
        indexes = [
            models.Index(fields=["tenant", "-created_at"]),
            models.Index(
                name="task_open",
                fields=["status", "created_at"],
                condition=~models.Q(status__in=FINAL),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.id}"

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @classmethod
    def mark_queued(cls, task_id: uuid.UUID) -> bool:
        """The broker has the message. Loses, harmlessly, to a worker that was faster."""
        return _move(task_id, (TaskStatus.PENDING,), status=TaskStatus.QUEUED)

    @classmethod
    def claim(cls, task_id: uuid.UUID, tenant_id: str) -> Task | None:
        """Take the task for this worker and start its next attempt; None when there is nothing to take."""
        rows = cls.unscoped.raw(
            f"UPDATE {cls._meta.db_table} SET status = %s, attempt = attempt + 1, started_at = now()"
            " WHERE id = %s AND tenant_id = %s AND status IN (%s, %s) RETURNING *",
            [TaskStatus.PROCESSING, task_id, tenant_id, *CLAIMABLE],
        )
        return next(iter(rows), None)

    @classmethod
    def cancel_unstarted(cls, task_id: uuid.UUID, by: str) -> bool:
        """Cancel a task that no worker has."""
        return _move(
            task_id,
            (*CLAIMABLE, TaskStatus.WAITING),
            status=TaskStatus.CANCELLED,
            cancelled_at=Now(),
            cancelled_by=by,
            finished_at=Now(),
        )

    @classmethod
    def ask_to_cancel(cls, task_id: uuid.UUID, by: str) -> bool:
        """Tell the worker that has the task to stop; it settles the row."""
        return _move(
            task_id,
            (TaskStatus.PROCESSING,),
            status=TaskStatus.CANCELLING,
            cancelled_at=Now(),
            cancelled_by=by,
        )

    def settle(self, status: str, *, result: Any = None, error: Any = None) -> str | None:
        """End this attempt as completed or failed; a task that is `cancelling` ends `cancelled` instead.

        Returns the final status, or None when the attempt is no longer ours.
        """
        if status not in (TaskStatus.COMPLETED, TaskStatus.FAILED):
            raise ValueError(f"a run ends completed or failed, not {status}")
        ending = {"result": result, "finished_at": Now()}
        ours = {"attempt": self.attempt}
        if _move(self.pk, (TaskStatus.PROCESSING,), ours, status=status, error=error, **ending):
            return status
        if _move(self.pk, (TaskStatus.CANCELLING,), ours, status=TaskStatus.CANCELLED, **ending):
            return TaskStatus.CANCELLED
        return None


def _move(
    task_id: uuid.UUID,
    origins: tuple[TaskStatus, ...],
    guard: dict[str, Any] | None = None,
    **changes: Any,
) -> bool:
    """The compare-and-set that every arrow is made of."""
    rows = Task.unscoped.filter(pk=task_id, status__in=origins, **(guard or {}))
    return rows.update(**changes) == 1
