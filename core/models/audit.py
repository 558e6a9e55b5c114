"""What was changed, by whom, from where."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from core.models.tenant import Tenant
from core.tenancy import TenantManager


class AuditSource(models.TextChoices):
    """The door by which a change came in."""

    API = "api", _("API")
    ADMIN = "admin", _("console")
    SOCKET = "socket", _("socket")
    QUEUE = "queue", _("queue")
    COMMAND = "command", _("command line")


class AuditEntry(models.Model):
    """One change, written in its transaction; it never changes. `core.audit.record` makes them.

    What belongs to no tenant (a tier) has none here either, and no tenant reads it. `before` and
    `after` hold the fields that differ, without secrets; of something new `before` is empty.
    """

    tenant = models.ForeignKey(
        Tenant, verbose_name=_("tenant"), null=True, on_delete=models.CASCADE, related_name="+"
    )
    verb = models.CharField(_("verb"), max_length=64)
    object_type = models.CharField(_("object type"), max_length=40)
    object_id = models.CharField(_("object id"), max_length=64)
    actor = models.CharField(_("actor"), max_length=160)
    before = models.JSONField(_("before"))
    after = models.JSONField(_("after"))
    source = models.CharField(_("source"), max_length=10, choices=AuditSource.choices)
    request_id = models.CharField(_("request id"), max_length=64, blank=True)
    ip = models.GenericIPAddressField(_("IP address"), null=True)
    created_at = models.DateTimeField(_("time"), auto_now_add=True)

    objects: ClassVar[TenantManager[Any]] = TenantManager()
    unscoped: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        verbose_name = _("audit entry")
        verbose_name_plural = _("audit entries")
        default_manager_name = "unscoped"
        indexes = [
            models.Index(name="audit_tenant", fields=["tenant", "-id"]),
            models.Index(name="audit_object", fields=["object_id", "-id"]),
        ]

    def __str__(self) -> str:
        return f"{self.verb} {self.object_id}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("an audit entry never changes")
        super().save(*args, **kwargs)
