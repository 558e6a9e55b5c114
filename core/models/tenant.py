"""Who pays, and for what: tenants and their tiers."""

from __future__ import annotations

from typing import Any

from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models, transaction
from django.utils.translation import gettext_lazy as _

from core.broker.limits import tell
from core.broker.scripts import DEFAULT_CAP
from core.ids import SLUG_PATTERN

# Django searches where our own code matches in full: `$` would let a trailing newline pass.
slug_validator = RegexValidator(
    SLUG_PATTERN.replace("$", r"\Z"), _("Use 1 to 40 lower-case letters, digits and inner hyphens.")
)


MOST_RETENTION_DAYS = 36_500


class Tier(models.Model):
    """What a plan allows. A bound that is None is none."""

    # Fields of a tier that counts nobody, and lets as much wait as comes.
    UNLIMITED = dict.fromkeys(
        (
            "ip_requests_per_minute",
            "ip_connects_per_minute",
            "session_messages_per_minute",
            "agent_requests_per_minute",
            "tenant_requests_per_minute",
            "max_waiting",
        )
    )

    slug = models.CharField(_("slug"), max_length=40, primary_key=True, validators=[slug_validator])
    name = models.CharField(_("name"), max_length=80)
    allowed_models = models.JSONField(
        _("allowed models"),
        default=list,
        blank=True,
        help_text=_("Names of the models that agents may use; an empty list allows all."),
    )
    priority_ceiling = models.PositiveSmallIntegerField(
        _("priority ceiling"),
        default=9,
        help_text=_("The highest priority (0-9) that a task may have; a higher one is lowered to it."),
    )
    weight = models.FloatField(
        _("weight"),
        default=1.0,
        validators=[MinValueValidator(0.01), MaxValueValidator(100)],
        help_text=_("A tenant of weight 4 gets four times the turns of one of weight 1 when both have work."),
    )
    max_running = models.PositiveIntegerField(
        _("running at once"),
        default=DEFAULT_CAP,
        validators=[MinValueValidator(1)],
        help_text=_("How many runs of one tenant may go on at once, over all workers."),
    )
    uses_environment_keys = models.BooleanField(
        _("uses the operator's provider keys"),
        default=True,
        help_text=_("Whether runs may use the provider keys of the environment."),
    )
    own_providers = models.BooleanField(
        _("providers of one's own"),
        default=True,
        help_text=_("Whether a tenant may register providers with its own keys and addresses."),
    )
    max_agents = models.PositiveIntegerField(
        _("agents"),
        null=True,
        blank=True,
        help_text=_("How many agents a tenant may have; no bound when empty."),
    )
    max_webhooks = models.PositiveIntegerField(
        _("webhooks"),
        null=True,
        blank=True,
        help_text=_("How many webhooks a tenant may have; no bound when empty."),
    )
    max_run_seconds = models.FloatField(
        _("longest run"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("Seconds that a run may take; the platform's bound when empty."),
    )
    max_output_tokens = models.PositiveIntegerField(
        _("max. output tokens"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("Tokens that one answer may have; no bound when empty."),
    )
    ip_requests_per_minute = models.PositiveIntegerField(
        _("requests of one address"),
        null=True,
        blank=True,
        default=600,
        validators=[MinValueValidator(1)],
        help_text=_(
            "A minute, over HTTP and over sockets; about a hundred of them may come at once. IPv6 counts by"
            " networks of 64 bits. No limit when empty."
        ),
    )
    ip_connects_per_minute = models.PositiveIntegerField(
        _("connects of one address"),
        null=True,
        blank=True,
        default=300,
        validators=[MinValueValidator(1)],
        help_text=_("Sockets that one address may open in a minute; no limit when empty."),
    )
    session_messages_per_minute = models.PositiveIntegerField(
        _("messages of one session"),
        null=True,
        blank=True,
        default=60,
        validators=[MinValueValidator(1)],
        help_text=_("Messages that one session may be sent in a minute; no limit when empty."),
    )
    agent_requests_per_minute = models.PositiveIntegerField(
        _("questions to one agent"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("Messages and runs that one agent may be asked for in a minute; no limit when empty."),
    )
    tenant_requests_per_minute = models.PositiveIntegerField(
        _("requests of all"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_(
            "Requests that a tenant may get in a minute from everybody together; no limit when empty."
        ),
    )
    max_waiting = models.PositiveIntegerField(
        _("longest backlog"),
        null=True,
        blank=True,
        default=10_000,
        validators=[MinValueValidator(1)],
        help_text=_(
            "Runs of one tenant that may wait for a worker; further ones are refused. No bound when empty."
        ),
    )

    class Meta:
        verbose_name = _("tier")
        verbose_name_plural = _("tiers")
        constraints = [
            models.CheckConstraint(name="tier_priority_ceiling", condition=models.Q(priority_ceiling__lte=9)),
            models.CheckConstraint(name="tier_weight", condition=models.Q(weight__gt=0)),
            models.CheckConstraint(name="tier_max_running", condition=models.Q(max_running__gte=1)),
            models.CheckConstraint(name="tier_max_run_seconds", condition=models.Q(max_run_seconds__gt=0)),
            models.CheckConstraint(
                name="tier_max_output_tokens", condition=models.Q(max_output_tokens__gte=1)
            ),
            models.CheckConstraint(
                name="tier_rates",
                condition=models.Q(
                    ip_requests_per_minute__gte=1,
                    ip_connects_per_minute__gte=1,
                    session_messages_per_minute__gte=1,
                    agent_requests_per_minute__gte=1,
                    tenant_requests_per_minute__gte=1,
                    max_waiting__gte=1,
                ),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **kwargs)
        transaction.on_commit(self._tell_limits)

    def _tell_limits(self) -> None:
        tell((tenant, self.weight, self.max_running) for tenant in self.tenants.values_list("pk", flat=True))

    def allows_model(self, model: str) -> bool:
        return not self.allowed_models or model in self.allowed_models


class Tenant(models.Model):
    """A customer. Its id is its slug, and never changes: it stands in queue names and addresses."""

    id = models.CharField(_("id"), max_length=40, primary_key=True, validators=[slug_validator])
    name = models.CharField(_("name"), max_length=120)
    tier = models.ForeignKey(Tier, verbose_name=_("tier"), on_delete=models.PROTECT, related_name="tenants")
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    retention_days = models.PositiveIntegerField(
        _("days that sessions are kept"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(MOST_RETENTION_DAYS)],
        help_text=_(
            "Sessions in which nothing was said for so many days are deleted with all that belongs to"
            " them; for ever when empty."
        ),
    )
    # Switched off: nobody chats with its agents, and nothing of theirs runs.
    suspended_at = models.DateTimeField(_("suspended at"), null=True, editable=False)
    suspended_reason = models.CharField(_("reason"), max_length=500, blank=True, editable=False)
    # Whether one of its agents has ever not been open to all: only then sockets ask whose they are.
    guarded = models.BooleanField(default=False, editable=False)

    class Meta:
        verbose_name = _("tenant")
        verbose_name_plural = _("tenants")
        constraints = [
            models.CheckConstraint(name="tenant_retention_days", condition=models.Q(retention_days__gte=1))
        ]

    def __str__(self) -> str:
        return self.id

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **kwargs)
        transaction.on_commit(lambda: tell([(self.pk, self.tier.weight, self.tier.max_running)]))
