"""How much may be used, and how much has been."""

from __future__ import annotations

from django.core.validators import MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from core.ids import uuid7
from core.models.base import TenantModel
from core.models.price import dollars


class Budget(TenantModel):
    """What a tenant, one of its agents, or an end user may use in a day, a month or in total.

    Days and months are UTC's; a total counts from the budget's making. At least one limit is set.
    An end user's budget is for every end user, each for themselves, or for the one that is named; of one
    agent, or of all. Those who do not say who they are share one.
    """

    class Subject(models.TextChoices):
        TENANT = "tenant", _("tenant")
        AGENT = "agent", _("agent")
        END_USER = "end_user", _("end user")

    class Period(models.TextChoices):
        DAY = "day", _("day")
        MONTH = "month", _("month")
        TOTAL = "total", _("total")

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    subject = models.CharField(_("subject"), max_length=10, choices=Subject.choices)
    agent_id = models.UUIDField(_("agent"), null=True, blank=True)
    end_user = models.CharField(
        _("end user"), max_length=255, blank=True, help_text=_("Empty: each end user for themselves.")
    )
    period = models.CharField(_("period"), max_length=10, choices=Period.choices)
    limit_tokens = models.PositiveBigIntegerField(
        _("tokens"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("Prompt and completion together; no bound when empty."),
    )
    limit_cost = dollars(
        _("US dollars"),
        null=True,
        blank=True,
        help_text=_("No bound when empty. Models without a price are refused where there is one."),
    )
    locked = models.BooleanField(
        _("locked"),
        default=False,
        help_text=_("The tenant's own keys and people may read it, and not change it."),
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("budget")
        verbose_name_plural = _("budgets")
        constraints = [
            models.UniqueConstraint(
                name="budget_once",
                fields=["tenant", "subject", "agent_id", "end_user", "period"],
                nulls_distinct=False,
            ),
            models.CheckConstraint(
                name="budget_limits",
                condition=(models.Q(limit_tokens__isnull=False) | models.Q(limit_cost__isnull=False))
                & ~models.Q(limit_tokens__lt=1)
                & ~models.Q(limit_cost__lte=0),
            ),
            models.CheckConstraint(
                name="budget_subject",
                condition=models.Q(subject="tenant", agent_id=None, end_user="")
                | models.Q(subject="agent", agent_id__isnull=False, end_user="")
                | models.Q(subject="end_user"),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_subject_display()}, {self.get_period_display()}"


class BudgetUse(TenantModel):
    """What one budget's period has seen: of the tenant, the agent, or one end user.

    `spent` is what ended calls have taken, `held` what is reserved for calls under way. Every
    UsageRecord names the rows it counts in (`charged`), and their sums are its: see `core.budgets`.
    """

    budget = models.ForeignKey(
        Budget, verbose_name=_("budget"), on_delete=models.CASCADE, related_name="uses"
    )
    end_user = models.CharField(_("end user"), max_length=255, blank=True)
    begins_at = models.DateTimeField(_("begins at"))
    spent_tokens = models.BigIntegerField(_("tokens used"), db_default=0)
    held_tokens = models.BigIntegerField(_("tokens reserved"), db_default=0)
    spent_cost = dollars(_("US dollars used"), db_default=0)
    held_cost = dollars(_("US dollars reserved"), db_default=0)
    told = models.PositiveSmallIntegerField(db_default=0, editable=False)  # the threshold, in percent

    class Meta(TenantModel.Meta):
        verbose_name = _("use of a budget")
        verbose_name_plural = _("uses of budgets")
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(name="budget_use_once", fields=["budget", "end_user", "begins_at"])
        ]
        indexes = [models.Index(name="budget_use_age", fields=["begins_at"])]

    def __str__(self) -> str:
        return f"{self.budget_id} {self.end_user} {self.begins_at:%Y-%m-%d}"
