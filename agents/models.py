"""Agents, their immutable versions, and templates to make them from."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from core.ids import uuid7
from core.models import Task, Tenant, TenantModel
from core.models.tenant import slug_validator


class Agent(TenantModel):
    """What people talk to; a deleted agent keeps its history.

    `version` is its newest, which people edit; `published` is the one that answers, and lags behind
    while a change waits to be published. A draft has none: it answers nobody.
    """

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
    published = models.ForeignKey(
        "AgentVersion",
        verbose_name=_("published version"),
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    # Changes of all that is not configuration since the newest version: it counts on in the ETag.
    edits = models.PositiveIntegerField(default=0, editable=False)
    # What it was made from, and as which version of it.
    template = models.ForeignKey(
        "AgentTemplate",
        verbose_name=_("template"),
        null=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="agents",
    )
    template_version = models.PositiveIntegerField(_("template version"), null=True, editable=False)
    # The last check's result: agents/validation.py `kept`.
    validation = models.JSONField(null=True, editable=False)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)
    deleted_at = models.DateTimeField(_("deleted at"), null=True, editable=False)
    # Switched off: nobody chats with it, and nothing of it runs, until it is lifted.
    suspended_at = models.DateTimeField(_("suspended at"), null=True, editable=False)
    suspended_reason = models.CharField(_("reason"), max_length=500, blank=True, editable=False)

    class Meta(TenantModel.Meta):
        verbose_name = _("agent")
        verbose_name_plural = _("agents")
        constraints = [
            models.UniqueConstraint(
                name="agent_slug", fields=["tenant", "slug"], condition=models.Q(deleted_at=None)
            ),
            models.CheckConstraint(
                name="agent_published",
                condition=models.Q(status="published", published__isnull=False)
                | models.Q(status="draft", published=None),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def tag(self) -> str:
        """Names this state of the agent: its newest version, and what has been edited since (`3`, `3.1`)."""
        assert self.version is not None
        return f"{self.version.number}.{self.edits}" if self.edits else str(self.version.number)


class AgentVersion(TenantModel):
    """A configuration that was in force once, or is. It never changes: runs pin it, caches keep it."""

    agent = models.ForeignKey(
        Agent, verbose_name=_("agent"), on_delete=models.CASCADE, related_name="versions"
    )
    number = models.PositiveIntegerField(_("number"))
    config = models.JSONField(_("config"))
    author = models.CharField(_("author"), max_length=160)
    note = models.CharField(_("note"), max_length=500, blank=True)
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


class AgentBulkItem(TenantModel):
    """One agent of a mass update, and what became of it: `ok` is null until it is done.

    Asked for by its slug, it has no `agent_id` until it is found.
    """

    # The first task of the update: others go on with it when somebody retries that one.
    task = models.ForeignKey(Task, verbose_name=_("task"), on_delete=models.CASCADE, related_name="+")
    position = models.PositiveIntegerField(_("position"))
    agent_id = models.UUIDField(_("agent"), null=True)
    slug = models.CharField(_("slug"), max_length=40, blank=True)
    tried_by = models.UUIDField(null=True, editable=False)  # the task that has done it last
    ok = models.BooleanField(_("succeeded"), null=True)
    version = models.PositiveIntegerField(_("version"), null=True)
    error = models.JSONField(_("error"), null=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("agent of a mass update")
        verbose_name_plural = _("agents of mass updates")
        constraints = [models.UniqueConstraint(name="bulk_item_position", fields=["task", "position"])]

    def __str__(self) -> str:
        return self.slug or str(self.agent_id)


class AgentTemplate(models.Model):
    """A configuration to make agents from; of one tenant, or for all when it has none.

    `{{name}}` in its texts stands for the variable of that name. `version` counts the changes of the
    configuration and the variables: agents remember which one they were made from.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey(
        Tenant, verbose_name=_("tenant"), null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    slug = models.CharField(_("slug"), max_length=40, validators=[slug_validator])
    name = models.CharField(_("name"), max_length=120)
    category = models.CharField(_("category"), max_length=40, blank=True)
    type = models.CharField(_("type"), max_length=64)
    description = models.TextField(_("description"), blank=True, max_length=2_000)
    config = models.JSONField(_("config"))
    variables = models.JSONField(_("variables"), default=list)  # of TemplateVariable
    version = models.PositiveIntegerField(_("version"), default=1, editable=False)
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
