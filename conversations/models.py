"""Sessions and their messages."""

from __future__ import annotations

import datetime
from typing import Any

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from agents.models import Agent
from core.models import Task, TenantModel


class SessionState(models.TextChoices):
    CREATED = "created", _("created")
    ACTIVE = "active", _("active")
    IDLE = "idle", _("idle")
    CLOSED = "closed", _("closed")
    EXPIRED = "expired", _("expired")


OPEN = (SessionState.CREATED, SessionState.ACTIVE, SessionState.IDLE)
OVER = (SessionState.CLOSED, SessionState.EXPIRED)

# Nothing has been said for so long.
IDLE_AFTER = datetime.timedelta(minutes=30)
EXPIRES_AFTER = datetime.timedelta(days=30)


class Session(TenantModel):
    """One conversation with one agent, and the state machine of its life.

    `key` is the id that clients know, unique in its tenant. Arrows, each by the database's clock; nothing
    else assigns a state:

    created, idle → active           a message: handlers/messages.py `open_session`
    active → idle                    rounds.py: nothing was said for `IDLE_AFTER`
    created, idle → expired          rounds.py: nothing was said for `EXPIRES_AFTER`
    created, active, idle → closed   `close`

    What is closed or expired takes no messages and never opens again. A session whose `deleted_at` is set
    has lost all that was said in it, is shown to nobody, and goes when its last run has ended.
    """

    State = SessionState

    key = models.CharField(_("session id"), max_length=64)
    agent = models.ForeignKey(Agent, verbose_name=_("agent"), on_delete=models.PROTECT, related_name="+")
    state = models.CharField(
        _("state"), max_length=10, choices=SessionState.choices, default=SessionState.CREATED
    )
    title = models.CharField(_("title"), max_length=200, blank=True)
    user_id = models.CharField(_("end user"), max_length=255, blank=True)
    user_info = models.JSONField(_("about the end user"), default=dict, blank=True)
    context = models.JSONField(_("context variables"), default=dict, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    # When the last question came. In no index: the update of every message stays within its page.
    last_active_at = models.DateTimeField(_("last active at"), db_default=Now())
    ended_at = models.DateTimeField(_("ended at"), null=True)
    deleted_at = models.DateTimeField(null=True, editable=False)

    class Meta(TenantModel.Meta):
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        constraints = [
            models.UniqueConstraint(name="session_key", fields=["tenant", "key"]),
            models.CheckConstraint(name="session_state", condition=models.Q(state__in=SessionState.values)),
            models.CheckConstraint(
                name="session_ended",
                condition=models.Q(state__in=OPEN, ended_at=None)
                | models.Q(state__in=OVER, ended_at__isnull=False),
            ),
        ]
        indexes = [
            models.Index(name="session_age", fields=["tenant", "created_at", "id"]),
            models.Index(name="session_user", fields=["tenant", "user_id"], condition=~models.Q(user_id="")),
            # Of those whose state silence changes.
            models.Index(
                name="session_silence", fields=["state", "created_at"], condition=models.Q(state__in=OPEN)
            ),
        ]

    def __str__(self) -> str:
        return self.key

    @property
    def serial_key(self) -> str:
        return serial_key(self.pk)

    @classmethod
    def close(cls, pk: int, **fields: Any) -> bool:
        """End a session that is not over; `fields` change with it."""
        rows = cls.unscoped.filter(pk=pk, state__in=OPEN)
        return rows.update(state=SessionState.CLOSED, ended_at=Now(), **fields) == 1


def serial_key(session_row_id: int) -> str:
    """A session's runs go one at a time, in order."""
    return f"session:{session_row_id}"


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
