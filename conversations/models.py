"""Sessions and their messages."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from agents.models import Agent
from core.models import Task, TenantModel


class Session(TenantModel):
    """One conversation with one agent. `key` is the id that clients know, unique in its tenant."""

    key = models.CharField(_("session id"), max_length=64)
    agent = models.ForeignKey(Agent, verbose_name=_("agent"), on_delete=models.PROTECT, related_name="+")
    user_id = models.CharField(_("end user"), max_length=255, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    class Meta(TenantModel.Meta):
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        constraints = [models.UniqueConstraint(name="session_key", fields=["tenant", "key"])]

    def __str__(self) -> str:
        return self.key


class Message(TenantModel):
    """What was said. `seq` is the session's last seq when it was written: a resume token opens by it."""

    class Role(models.TextChoices):
        USER = "user", _("user")
        ASSISTANT = "assistant", _("assistant")

    session = models.ForeignKey(
        Session, verbose_name=_("session"), on_delete=models.CASCADE, related_name="messages"
    )
    task = models.ForeignKey(
        Task, verbose_name=_("task"), null=True, on_delete=models.SET_NULL, related_name="messages"
    )
    role = models.CharField(_("role"), max_length=10, choices=Role.choices)
    text = models.TextField(_("text"))
    finish_reason = models.CharField(_("finish reason"), max_length=20, blank=True)
    seq = models.PositiveBigIntegerField(_("seq"))
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    class Meta(TenantModel.Meta):
        verbose_name = _("message")
        verbose_name_plural = _("messages")
        constraints = [models.UniqueConstraint(name="message_task_role", fields=["task", "role"])]
        indexes = [models.Index(fields=["session", "id"])]

    def __str__(self) -> str:
        return f"{self.role}: {self.text[:60]}"
