"""What models cost."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.validators import MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from core.models.tenant import Tenant
from core.tenancy import TenantManager

# Digits behind the point: a token's cost, at a price per million tokens, is never rounded.
PRICE_DIGITS, COST_DIGITS = 6, 12


def dollars_per_million(label: Any, **options: Any) -> models.DecimalField[Any, Any]:
    """A column of US dollars per million tokens."""
    return models.DecimalField(
        label, max_digits=16, decimal_places=PRICE_DIGITS, validators=[MinValueValidator(0)], **options
    )


def dollars(label: Any, **options: Any) -> models.DecimalField[Any, Any]:
    """A column of US dollars."""
    return models.DecimalField(label, max_digits=28, decimal_places=COST_DIGITS, **options)


class ModelPrice(models.Model):
    """A model's price from a moment on. A row never changes, since calls were made by it: a new price is a
    new row, and one that should not be there is withdrawn.

    Without a tenant it is everybody's; a tenant's own goes before those. `model` is a name, or a pattern
    whose `*` stands for anything; names go before patterns, long patterns before short ones.
    `from_prompt_tokens`: the price of calls whose prompt has at least so many.
    """

    class Source(models.TextChoices):
        LIST = "list", _("price list")
        CONSOLE = "console", _("console")

    tenant = models.ForeignKey(
        Tenant,
        verbose_name=_("tenant"),
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="+",
        help_text=_("Empty: the price of all tenants."),
    )
    provider = models.CharField(_("provider"), max_length=64)
    model = models.CharField(
        _("model"), max_length=128, help_text=_("A model's name; * stands for any characters.")
    )
    from_prompt_tokens = models.PositiveIntegerField(
        _("from prompt tokens"),
        default=0,
        help_text=_("The price of calls whose prompt has at least so many tokens."),
    )
    prompt = dollars_per_million(_("prompt"), help_text=_("US dollars per million tokens"))
    completion = dollars_per_million(_("completion"), help_text=_("US dollars per million tokens"))
    cached = dollars_per_million(
        _("cached prompt"),
        null=True,
        blank=True,
        help_text=_("US dollars per million tokens; like the prompt when empty"),
    )
    valid_from = models.DateTimeField(_("valid from"))
    source = models.CharField(_("source"), max_length=10, choices=Source.choices, editable=False)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    withdrawn_at = models.DateTimeField(_("withdrawn at"), null=True, editable=False)

    objects: ClassVar[TenantManager[Any]] = TenantManager()
    unscoped: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        verbose_name = _("price")
        verbose_name_plural = _("prices")
        default_manager_name = "unscoped"
        constraints = [
            models.CheckConstraint(
                name="price_positive",
                condition=models.Q(prompt__gte=0) & models.Q(completion__gte=0) & ~models.Q(cached__lt=0),
            ),
        ]
        indexes = [
            models.Index(
                name="price_living",
                fields=["provider", "tenant"],
                condition=models.Q(withdrawn_at=None),
            )
        ]

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"
