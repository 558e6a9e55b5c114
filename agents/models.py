"""Agents, their immutable versions, and templates to make them from."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from core.ids import uuid7
from core.models import Tenant, TenantModel
from core.models.tenant import slug_validator


class Agent(TenantModel):
    """What people talk to. Its configuration is its current version's; a deleted agent keeps its history."""

    class Status(models.TextChoices):
        DRAFT = "draft", _("draft")
        PUBLISHED = "published", _("published")

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    slug = models.CharField(_("slug"), max_length=40, validators=[slug_validator])
    name = models.CharField(_("name"), max_length=120)
    type = models.CharField(_("type"), max_length=64)
    description = models.TextField(_("description"), blank=True, max_length=2_000)
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.PUBLISHED)
    version = models.ForeignKey(
        "AgentVersion",
        verbose_name=_("current version"),
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)
    deleted_at = models.DateTimeField(_("deleted at"), null=True, editable=False)

    class Meta(TenantModel.Meta):
        verbose_name = _("agent")
        verbose_name_plural = _("agents")
        constraints = [
            models.UniqueConstraint(
                name="agent_slug", fields=["tenant", "slug"], condition=models.Q(deleted_at=None)
            )
        ]

    def __str__(self) -> str:
        return self.name


class AgentVersion(TenantModel):
    """A configuration that was in force once, or is. It never changes: runs pin it, caches keep it."""

    agent = models.ForeignKey(
        Agent, verbose_name=_("agent"), on_delete=models.CASCADE, related_name="versions"
    )
    number = models.PositiveIntegerField(_("number"))
    config = models.JSONField(_("config"))
    author = models.CharField(_("author"), max_length=160)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("agent version")
        verbose_name_plural = _("agent versions")
        constraints = [models.UniqueConstraint(name="agent_version_number", fields=["agent", "number"])]

    def __str__(self) -> str:
        return f"v{self.number}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("an agent version never changes: make a new one")
        super().save(*args, **kwargs)


class AgentTemplate(models.Model):
    """A configuration to make agents from; of one tenant, or for all when it has none."""

    tenant = models.ForeignKey(
        Tenant, verbose_name=_("tenant"), null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    slug = models.CharField(_("slug"), max_length=40, validators=[slug_validator])
    name = models.CharField(_("name"), max_length=120)
    type = models.CharField(_("type"), max_length=64)
    description = models.TextField(_("description"), blank=True, max_length=2_000)
    config = models.JSONField(_("config"))
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    class Meta:
        verbose_name = _("agent template")
        verbose_name_plural = _("agent templates")
        constraints = [
            models.UniqueConstraint(
                name="agent_template_slug", fields=["tenant", "slug"], nulls_distinct=False
            )
        ]

    def __str__(self) -> str:
        return self.name
