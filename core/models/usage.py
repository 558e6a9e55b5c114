"""What provider calls consumed."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.utils.translation import gettext_lazy as _

from core.models.base import TenantModel
from core.models.price import ModelPrice, dollars
from core.models.task import Task


class UsageRecord(TenantModel):
    """One provider call, written before it begins; until it has ended nobody knows what it took.

    `call` counts the calls of one attempt of the task. Agent, session and end user are plain ids: their
    tables stand on higher floors. It outlives its task.

    `cost` is what `price` makes of the tokens; without a price nobody knows it, and it is null.

    Where budgets apply, `charged` names the BudgetUse rows that count the call. They count its tokens
    and cost, and what it has `reserved`: all of it while the call is under way (`held`), nothing once it is
    known what it took, and still all of it when that will never be known.
    """

    class Accuracy(models.TextChoices):
        EXACT = "exact", _("exact")
        ESTIMATED = "estimated", _("estimated")
        UNKNOWN = "unknown", _("unknown")

    # The constraint's index finds a task's calls.
    task = models.ForeignKey(
        Task,
        verbose_name=_("task"),
        null=True,
        on_delete=models.SET_NULL,
        related_name="usage",
        db_index=False,
    )
    attempt = models.PositiveIntegerField(_("attempt"))
    call = models.PositiveSmallIntegerField(_("call"))
    agent_id = models.UUIDField(_("agent"))
    session_id = models.CharField(_("session"), max_length=64)
    end_user = models.CharField(_("end user"), max_length=255, blank=True)
    provider = models.CharField(_("provider"), max_length=64)
    model = models.CharField(_("model"), max_length=128)
    prompt_tokens = models.PositiveBigIntegerField(_("prompt tokens"), default=0)
    completion_tokens = models.PositiveBigIntegerField(_("completion tokens"), default=0)
    cached_tokens = models.PositiveBigIntegerField(_("cached tokens"), default=0)
    accuracy = models.CharField(
        _("accuracy"), max_length=10, choices=Accuracy.choices, default=Accuracy.UNKNOWN
    )
    cost = dollars(_("US dollars"), null=True)
    # Rows of prices stay: nothing has to be checked, or locked, when a call has ended.
    price = models.ForeignKey(
        ModelPrice,
        verbose_name=_("price"),
        null=True,
        on_delete=models.DO_NOTHING,
        related_name="+",
        db_index=False,
        db_constraint=False,
    )
    reserved_tokens = models.PositiveBigIntegerField(_("tokens reserved"), db_default=0)
    reserved_cost = dollars(_("US dollars reserved"), db_default=0)
    charged = ArrayField(models.BigIntegerField(), null=True, editable=False)
    held = models.BooleanField(db_default=False, editable=False)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("usage record")
        verbose_name_plural = _("usage records")
        constraints = [models.UniqueConstraint(name="usage_call", fields=["task", "attempt", "call"])]
        indexes = [
            models.Index(fields=["tenant", "created_at"]),
            BrinIndex(name="usage_time", fields=["created_at"]),
            # Of columns that change only where budgets apply: all others' updates touch no index.
            models.Index(name="usage_held", fields=["created_at"], condition=models.Q(held=True)),
        ]

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}: {self.prompt_tokens} + {self.completion_tokens}"
