"""What the front door remembers."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from core.ids import uuid7
from core.models import Notice, Task, TenantModel


class IdempotencyKey(TenantModel):
    """A caller's `Idempotency-Key` and the answer that it got, kept for a day.

    `scope` is a digest of whom the key belongs to; `answer` is JSON as it was sent, to the byte. A row
    is written in the transaction of what it answers: committed, it always has its answer.
    """

    scope = models.CharField(max_length=64)
    key = models.CharField(max_length=255)
    body = models.CharField(max_length=64)  # a digest of the parsed body
    answer = models.TextField(blank=True)
    session_id = models.CharField(max_length=64, blank=True, db_default="")  # that the answer names
    created_at = models.DateTimeField(db_default=Now())

    class Meta(TenantModel.Meta):
        default_permissions = ()
        constraints = [models.UniqueConstraint(name="idempotency_key", fields=["scope", "key"])]
        indexes = [
            models.Index(fields=["created_at"]),
            models.Index(name="idempotency_session", fields=["tenant", "session_id"]),
        ]

    def __str__(self) -> str:
        return self.key


class WebhookEndpoint(TenantModel):
    """Where a tenant wants to hear of what happens. The secrets are encrypted, and shown when made."""

    class Reason(models.TextChoices):
        """Why nothing is sent to it."""

        OWNER = "owner", _("by its owner")
        GONE = "gone", _("it answered 410 Gone")
        FAILING = "failing", _("nothing could be delivered for too long")

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    url = models.CharField(_("URL"), max_length=2_048)
    description = models.CharField(_("description"), max_length=500, blank=True)
    events = ArrayField(
        models.CharField(max_length=64),
        verbose_name=_("events"),
        default=list,
        blank=True,
        help_text=_("Names of the events that it hears of; none means all."),
    )
    secret = models.TextField(editable=False)
    previous_secret = models.TextField(blank=True, editable=False)
    previous_until = models.DateTimeField(_("former secret until"), null=True, editable=False)
    disabled_at = models.DateTimeField(_("disabled at"), null=True, editable=False)
    disabled_reason = models.CharField(
        _("disabled because"), max_length=10, choices=Reason.choices, blank=True, editable=False
    )
    # Since the last success: deliveries that died, and the first attempt that failed.
    dead_in_a_row = models.PositiveIntegerField(_("dead in a row"), default=0, editable=False)
    failing_since = models.DateTimeField(_("failing since"), null=True, editable=False)
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("webhook")
        verbose_name_plural = _("webhooks")

    def __str__(self) -> str:
        return self.url


class Delivery(TenantModel):
    """One notice on its way to one endpoint: tried until it is taken, or dead.

    `due_at` is when it is tried next. Whoever tries it holds a `claim` until `claimed_until`; what comes
    of the attempt is written by the holder of the claim only. While a delivery is pending, none of a
    later notice of its subject goes to the same endpoint.
    """

    class Status(models.TextChoices):
        PENDING = "pending", _("pending")
        DELIVERED = "delivered", _("delivered")
        DEAD = "dead", _("dead")

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    endpoint = models.ForeignKey(
        WebhookEndpoint, verbose_name=_("webhook"), on_delete=models.CASCADE, related_name="deliveries"
    )
    notice = models.ForeignKey(Notice, verbose_name=_("notice"), on_delete=models.CASCADE, related_name="+")
    event = models.CharField(_("event"), max_length=64)
    subject = models.CharField(_("subject"), max_length=64)
    status = models.CharField(
        _("status"), max_length=10, choices=Status.choices, default=Status.PENDING, editable=False
    )
    failures = models.PositiveSmallIntegerField(_("failures"), default=0)  # since it was made or replayed
    due_at = models.DateTimeField(_("next attempt"), db_default=Now())
    claim = models.UUIDField(null=True, editable=False)
    claimed_until = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    finished_at = models.DateTimeField(_("finished at"), null=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        constraints = [models.UniqueConstraint(name="delivery_once", fields=["endpoint", "notice"])]
        indexes = [
            models.Index(name="delivery_due", fields=["due_at"], condition=models.Q(status="pending")),
            models.Index(
                name="delivery_order",
                fields=["endpoint", "subject", "notice"],
                condition=models.Q(status="pending"),
            ),
            models.Index(name="delivery_log", fields=["endpoint", "-id"]),
        ]

    def __str__(self) -> str:
        return f"{self.event} {self.id}"


class DeliveryAttempt(TenantModel):
    """One request to an endpoint, and what came back."""

    delivery = models.ForeignKey(
        Delivery, verbose_name=_("delivery"), on_delete=models.CASCADE, related_name="attempts"
    )
    started_at = models.DateTimeField(_("started at"))
    seconds = models.FloatField(_("duration"))
    status_code = models.PositiveSmallIntegerField(_("HTTP status"), null=True)
    error = models.CharField(_("error"), max_length=200, blank=True)
    answer = models.TextField(_("beginning of the answer"), blank=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("delivery attempt")
        verbose_name_plural = _("delivery attempts")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return str(self.status_code or self.error)


class BatchStatus(models.TextChoices):
    PROCESSING = "processing", _("processing")
    CANCELLING = "cancelling", _("cancelling")
    COMPLETED = "completed", _("completed")
    CANCELLED = "cancelled", _("cancelled")


OPEN_BATCHES = (BatchStatus.PROCESSING, BatchStatus.CANCELLING)


class Batch(TenantModel):
    """Many runs that somebody asked for at once. What becomes of each is in its BatchItem.

    The counts change in the transactions of what they count, while `handlers/batches.py` `alone` holds the
    tenant's batches: they are always those of the items. Arrows, each when the last item has ended:

    processing → completed   whatever became of the items
    cancelling → cancelled   somebody has cancelled it, which is processing → cancelling
    """

    Status = BatchStatus

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    agent_id = models.UUIDField(_("agent"), null=True)  # of the items that name none
    status = models.CharField(
        _("status"), max_length=10, choices=BatchStatus.choices, default=BatchStatus.PROCESSING
    )
    total = models.PositiveIntegerField(_("items"))
    succeeded = models.PositiveIntegerField(_("succeeded"), default=0)
    failed = models.PositiveIntegerField(_("failed"), default=0)
    cancelled = models.PositiveIntegerField(_("cancelled"), default=0)
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    finished_at = models.DateTimeField(_("finished at"), null=True)
    cancelled_at = models.DateTimeField(_("cancelled at"), null=True)
    cancelled_by = models.CharField(_("cancelled by"), max_length=255, blank=True)
    # Of whoever asked for it, for the runs' logs and spans (core.tracing).
    traceparent = models.CharField(_("trace"), max_length=55, blank=True)
    request_id = models.CharField(_("request id"), max_length=64, blank=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("batch")
        verbose_name_plural = _("batches")
        constraints = [
            models.CheckConstraint(name="batch_status", condition=models.Q(status__in=BatchStatus.values)),
            models.CheckConstraint(
                name="batch_counts",
                condition=models.Q(
                    total__gte=models.F("succeeded") + models.F("failed") + models.F("cancelled")
                ),
            ),
        ]
        indexes = [
            models.Index(name="batch_open", fields=["tenant"], condition=models.Q(status__in=OPEN_BATCHES)),
            models.Index(name="batch_age", fields=["tenant", "finished_at"]),
        ]

    def __str__(self) -> str:
        return str(self.id)

    @property
    def done(self) -> int:
        """How many items have ended, whichever way."""
        return self.succeeded + self.failed + self.cancelled

    @property
    def is_open(self) -> bool:
        return self.status in OPEN_BATCHES


class ItemStatus(models.TextChoices):
    PENDING = "pending", _("pending")
    PROCESSING = "processing", _("processing")
    COMPLETED = "completed", _("completed")
    FAILED = "failed", _("failed")
    CANCELLED = "cancelled", _("cancelled")


ENDED_ITEMS = (ItemStatus.COMPLETED, ItemStatus.FAILED, ItemStatus.CANCELLED)


class BatchItem(TenantModel):
    """One run of a batch: what is asked, and what came of it.

    `pending`: it waits for its turn, and is nowhere but here. `processing`: it has a task, which may still
    wait, be given back or begin again. Then it has ended as its task has, whose result and error are kept
    here. One that never began may be failed, when its agent is gone, or cancelled.
    """

    Status = ItemStatus

    batch = models.ForeignKey(
        Batch, verbose_name=_("batch"), on_delete=models.CASCADE, related_name="items", db_index=False
    )
    position = models.PositiveIntegerField(_("position"))  # from 1
    custom_id = models.CharField(_("caller's id"), max_length=128, blank=True)
    agent_id = models.UUIDField(_("agent"))
    version_id = models.BigIntegerField(editable=False)  # the one that was published when the batch came
    request = models.JSONField(_("request"))  # of ExecuteAgentAction: messages, options, end_user, metadata
    status = models.CharField(
        _("status"), max_length=10, choices=ItemStatus.choices, default=ItemStatus.PENDING
    )
    task = models.OneToOneField(
        Task, verbose_name=_("task"), null=True, on_delete=models.SET_NULL, related_name="+"
    )
    result = models.JSONField(_("result"), null=True)
    error = models.JSONField(_("error"), null=True)
    finished_at = models.DateTimeField(_("finished at"), null=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("item of a batch")
        verbose_name_plural = _("items of batches")
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(name="batch_item_position", fields=["batch", "position"]),
            models.CheckConstraint(
                name="batch_item_status", condition=models.Q(status__in=ItemStatus.values)
            ),
        ]
        indexes = [
            models.Index(
                name="batch_item_waiting",
                fields=["tenant", "batch", "position"],
                condition=models.Q(status="pending"),
            ),
            models.Index(
                name="batch_item_running", fields=["tenant"], condition=models.Q(status="processing")
            ),
        ]

    def __str__(self) -> str:
        return self.custom_id or f"{self.position}"
