"""Who pays, and for what: tenants and their tiers."""

from __future__ import annotations

from django.core.validators import RegexValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from core.ids import SLUG_PATTERN

# Django searches where our own code matches in full: `$` would let a trailing newline pass.
slug_validator = RegexValidator(
    SLUG_PATTERN.replace("$", r"\Z"), _("Use 1 to 40 lower-case letters, digits and inner hyphens.")
)


class Tier(models.Model):
    """What a plan allows."""

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
    uses_environment_keys = models.BooleanField(
        _("uses the operator's provider keys"),
        default=True,
        help_text=_("Whether runs may use the provider keys of the environment."),
    )

    class Meta:
        verbose_name = _("tier")
        verbose_name_plural = _("tiers")
        constraints = [
            models.CheckConstraint(name="tier_priority_ceiling", condition=models.Q(priority_ceiling__lte=9))
        ]

    def __str__(self) -> str:
        return self.name

    def allows_model(self, model: str) -> bool:
        return not self.allowed_models or model in self.allowed_models


class Tenant(models.Model):
    """A customer. Its id is its slug, and never changes: it stands in queue names and addresses."""

    id = models.CharField(_("id"), max_length=40, primary_key=True, validators=[slug_validator])
    name = models.CharField(_("name"), max_length=120)
    tier = models.ForeignKey(Tier, verbose_name=_("tier"), on_delete=models.PROTECT, related_name="tenants")
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        verbose_name = _("tenant")
        verbose_name_plural = _("tenants")

    def __str__(self) -> str:
        return self.id
