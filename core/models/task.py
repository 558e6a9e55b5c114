"""The task: a queued action and the guarded state machine of its life."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from typing import Any

from django.core.validators import MaxValueValidator
from django.db import connection, models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from core.ids import uuid7
from core.leases import LEASE_SECONDS
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


class NextOrdinal(models.Func):
    """Grows with every task. Per serial key it is the order of commits: see `Task.line_up`."""

    template = "nextval('core_task_ordinal')"
    output_field = models.BigIntegerField()


CLAIMABLE = (TaskStatus.PENDING, TaskStatus.QUEUED)
RUNNING = (TaskStatus.PROCESSING, TaskStatus.CANCELLING)
FINAL = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


class Task(TenantModel):
    """A queued action: written in the transaction that asked for it, run by a worker, settled once.

    Arrows, each a compare-and-set update that changes one row or did not happen; nothing else
    assigns a status, and the clock is the database's:

    pending → queued                      `mark_queued`: handed to the broker
    pending, queued → processing          `claim`: with a lease, which `renew` prolongs
    pending, queued, waiting → cancelled  `cancel_unstarted`
    processing → cancelling               `ask_to_cancel`
    processing → completed, failed        `settle`
    cancelling → cancelled                `settle`
    processing → queued                   `give_back`: handed over, restarted, or its worker died

    `attempt` is the fence: whoever takes a task from its worker raises it, and whoever writes for the
    task names the attempt it is. It is 0 until the first claim.

    Tasks with the same `serial_key` run one at a time, in the order of `ordinal`.
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
    crashes = models.PositiveSmallIntegerField(_("crashes"), default=0)
    lease_until = models.DateTimeField(_("lease until"), null=True)
    deadline = models.DateTimeField(_("deadline"), null=True)  # of the present attempt
    not_before = models.DateTimeField(_("not before"), null=True)
    # When the sweeper looks whether the broker still has the message of a task that nobody has claimed.
    due_at = models.DateTimeField(_("due at"), db_default=Now())
    serial_key = models.CharField(_("serial key"), max_length=64, blank=True)
    ordinal = models.BigIntegerField(_("ordinal"), db_default=NextOrdinal(), editable=False)
    agent_id = models.UUIDField(_("agent"), null=True)
    session_id = models.CharField(_("session"), max_length=64, blank=True)
    result = models.JSONField(_("result"), null=True)
    error = models.JSONField(_("error"), null=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    started_at = models.DateTimeField(_("started at"), null=True)
    finished_at = models.DateTimeField(_("finished at"), null=True)
    cancelled_at = models.DateTimeField(_("cancelled at"), null=True)
    cancelled_by = models.CharField(_("cancelled by"), max_length=255, blank=True)
    # Of whoever asked for it: the W3C header and the request, for logs and spans (core.tracing).
    traceparent = models.CharField(_("trace"), max_length=55, blank=True, default="", db_default="")
    request_id = models.CharField(_("request id"), max_length=64, blank=True, default="", db_default="")

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
            models.Index(name="task_due", fields=["due_at"], condition=models.Q(status__in=CLAIMABLE)),
            models.Index(name="task_lease", fields=["lease_until"], condition=models.Q(status__in=RUNNING)),
            models.Index(
                name="task_session", fields=["tenant", "session_id"], condition=~models.Q(session_id="")
            ),
            models.Index(
                name="task_execution",
                fields=["tenant", "-created_at"],
                condition=models.Q(session_id="", agent_id__isnull=False),
            ),
            models.Index(
                name="task_serial",
                fields=["serial_key", "ordinal"],
                condition=~models.Q(status__in=FINAL) & ~models.Q(serial_key=""),
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
    def claim(cls, task_id: uuid.UUID, tenant_id: str, seconds: float) -> Task | None:
        """Take the task for this worker, for `seconds` at most; None when there is nothing to take.

        Nobody takes a task before its time, nor while an earlier one of its serial key is open.
        """
        values: list[Any] = [LEASE_SECONDS, seconds, task_id, tenant_id]
        rows = cls.unscoped.raw(
            "UPDATE core_task AS task SET status = 'processing', attempt = GREATEST(attempt, 1),"
            f" started_at = {_NOW}, lease_until = {_NOW} + %s * interval '1 s',"
            f" deadline = {_NOW} + %s * interval '1 s'"
            " WHERE id = %s AND tenant_id = %s AND status IN ('pending', 'queued')"
            f" AND (not_before IS NULL OR not_before <= {_NOW})"
            f" AND (serial_key = '' OR NOT {_EARLIER_IS_OPEN}) RETURNING *",
            values,
        )
        return next(iter(rows), None)

    @classmethod
    def renew(cls, held: Iterable[tuple[uuid.UUID, int]]) -> dict[uuid.UUID, str]:
        """Prolong the leases of `(task, attempt)` pairs by one statement.

        Returns the status of those that are still this worker's: `processing`, or `cancelling` when
        somebody wants the task to stop. What is missing is another's.
        """
        ids, attempts = [], []
        for task_id, attempt in held:
            ids.append(task_id)
            attempts.append(attempt)
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE core_task AS task SET lease_until = {_NOW} + %s * interval '1 s'"
                " FROM unnest(%s::uuid[], %s::int[]) AS held (id, attempt)"
                " WHERE task.id = held.id AND task.attempt = held.attempt"
                " AND task.status IN ('processing', 'cancelling') RETURNING task.id, task.status",
                [LEASE_SECONDS, ids, attempts],
            )
            return dict(cursor.fetchall())

    @classmethod
    def line_up(cls, serial_key: str) -> list[Task]:
        """The open tasks of the key, in order; until the transaction ends nobody else adds one to it.

        Only with this lock is the order of ordinals the order of commits: without it an earlier task
        could appear when a later one already runs.
        """
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [serial_key])
        return list(cls.open_of(serial_key))

    @classmethod
    def open_of(cls, serial_key: str) -> models.QuerySet[Task]:
        """The open tasks of the key, in order."""
        rows: models.QuerySet[Task] = cls.unscoped.filter(serial_key=serial_key)
        return rows.exclude(serial_key="").exclude(status__in=FINAL).order_by("ordinal")

    @classmethod
    def next_of(cls, serial_key: str) -> Task | None:
        """The first open task of the key, if it has still to be published.

        Spelled out: every run ends with this question, and nearly always the answer is no.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT id, status FROM core_task WHERE serial_key = %s AND serial_key <> ''"
                " AND status NOT IN ('completed', 'failed', 'cancelled') ORDER BY ordinal LIMIT 1",
                [serial_key],
            )
            first = cursor.fetchone()
        if first is None or first[1] != TaskStatus.PENDING:
            return None
        task: Task = cls.unscoped.get(pk=first[0])
        return task

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

    @classmethod
    def is_first_of_its_key(cls) -> Any:
        """Of a row in a query: no earlier task of its serial key is open."""
        earlier = cls.unscoped.filter(
            serial_key=models.OuterRef("serial_key"), ordinal__lt=models.OuterRef("ordinal")
        )
        return ~models.Exists(earlier.exclude(serial_key="").exclude(status__in=FINAL))

    def give_back(self, *, crashed: bool = False, seconds: float = 0) -> bool:
        """End this attempt without a result: from `seconds` on the next one may be claimed."""
        later = Now() + datetime.timedelta(seconds=seconds)
        return _move(
            self.pk,
            (TaskStatus.PROCESSING,),
            {"attempt": self.attempt},
            status=TaskStatus.QUEUED,
            attempt=self.attempt + 1,
            crashes=self.crashes + crashed,
            lease_until=None,
            deadline=None,
            not_before=later,
            due_at=later,
        )

    def settle(
        self, status: str, *, result: Any = None, error: Any = None, crashed: bool = False
    ) -> str | None:
        """End this attempt as completed or failed; a task that is `cancelling` ends `cancelled` instead.

        Returns the final status, or None when the attempt is no longer ours.
        """
        if status not in (TaskStatus.COMPLETED, TaskStatus.FAILED):
            raise ValueError(f"a run ends completed or failed, not {status}")
        ending = {"result": result, "finished_at": Now(), "crashes": self.crashes + crashed}
        ours = {"attempt": self.attempt}
        if _move(self.pk, (TaskStatus.PROCESSING,), ours, status=status, error=error, **ending):
            return status
        if _move(self.pk, (TaskStatus.CANCELLING,), ours, status=TaskStatus.CANCELLED, **ending):
            return TaskStatus.CANCELLED
        return None


_NOW = "statement_timestamp()"  # as Django's Now(), which the other arrows use
_EARLIER_IS_OPEN = (
    "EXISTS (SELECT 1 FROM core_task AS earlier WHERE earlier.serial_key = task.serial_key"
    " AND earlier.serial_key <> '' AND earlier.ordinal < task.ordinal"
    " AND earlier.status NOT IN ('completed', 'failed', 'cancelled'))"
)


def _move(
    task_id: uuid.UUID,
    origins: tuple[TaskStatus, ...],
    guard: dict[str, Any] | None = None,
    **changes: Any,
) -> bool:
    """The compare-and-set that every arrow is made of."""
    rows = Task.unscoped.filter(pk=task_id, status__in=origins, **(guard or {}))
    return rows.update(**changes) == 1
