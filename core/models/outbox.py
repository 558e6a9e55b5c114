"""What happened to a tenant's things, written where it happened, to be told afterwards."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from core.models.base import TenantModel


class Notice(TenantModel):
    """An event of the tenant's, written in the transaction of what it tells; `core.outbox` tells it.

    `subject` is the id of what it is about: the notices of one subject are told in the order of their
    ids, which is that of the commits. `body` is the event as it is sent.
    """

    event_id = models.UUIDField(_("event id"), editable=False)
    event = models.CharField(_("event"), max_length=64)
    subject = models.CharField(_("subject"), max_length=64)
    body = models.JSONField(_("body"))
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    relayed_at = models.DateTimeField(_("relayed at"), null=True)
    traceparent = models.CharField(_("trace"), max_length=55, blank=True, default="", db_default="")

    class Meta(TenantModel.Meta):
        verbose_name = _("notice")
        verbose_name_plural = _("notices")
        default_permissions = ("view",)
        constraints = [models.UniqueConstraint(name="notice_once", fields=["tenant", "event_id"])]
        indexes = [
            models.Index(
                name="notice_waiting",
                fields=["tenant", "subject", "id"],
                condition=models.Q(relayed_at=None),
            ),
            models.Index(name="notice_age", fields=["created_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.event} {self.subject}"
