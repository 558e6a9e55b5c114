"""What provider calls consumed."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from core.models.base import TenantModel
from core.models.task import Task


class UsageRecord(TenantModel):
    """One provider call, written before it begins; until it has ended nobody knows what it took.

    `call` counts the calls of one attempt of the task. Agent, session and end user are plain ids: their
    tables stand on higher floors.
    """

    class Accuracy(models.TextChoices):
        EXACT = "exact", _("exact")
        ESTIMATED = "estimated", _("estimated")
        UNKNOWN = "unknown", _("unknown")

    task = models.ForeignKey(Task, verbose_name=_("task"), on_delete=models.CASCADE, related_name="usage")
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
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("usage record")
        verbose_name_plural = _("usage records")
        constraints = [models.UniqueConstraint(name="usage_call", fields=["task", "attempt", "call"])]
        indexes = [models.Index(fields=["tenant", "created_at"])]

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}: {self.prompt_tokens} + {self.completion_tokens}"
