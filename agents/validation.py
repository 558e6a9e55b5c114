"""Whether a configuration fits: the tier's rule, the same for every door, and what a check has found.

What is new is refused when it does not fit: agents, and versions of them. What is there goes on: when a
tier shrinks, an agent keeps answering with its published version and carries a warning. Only the bounds
of a run hold for everybody at once, from the next run on (`bounded`).
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from django.db.models import Count, QuerySet
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from pydantic import BaseModel, ConfigDict

from agents.config import BUILT_IN_PROVIDERS, AgentConfig
from agents.errors import TooManyAgents
from agents.models import Agent
from agents.variables import PROMPT_VARIABLES, placeholders
from core.actions.base import Action, Result
from core.errors import ValidationFailed
from core.models import ProviderCredential, Tenant, Tier
from core.selectors import TenantLimits
from core.tenancy import current_tenant_id
from core.tiers import Misfit, finds_misfits

Level = Literal["error", "warning"]
Status = Literal["valid", "warnings", "invalid"]

MESSAGES = {
    "model_not_allowed": _("The tier %(tier)s does not allow this model."),
    "provider_not_allowed": _("The tier %(tier)s does not allow providers of one's own."),
    "run_too_long": _("The tier %(tier)s allows runs of %(limit)g seconds at most."),
    "output_too_long": _("The tier %(tier)s allows answers of %(limit)d tokens at most."),
    "provider_unknown": _("No provider is called %(provider)s."),
    "provider_not_configured": _("The provider %(provider)s is not configured."),
    "provider_refused": _("The provider %(provider)s refuses the credentials."),
    "provider_address_refused": _("The address of the provider %(provider)s is not a public one."),
    "provider_unreachable": _("The provider %(provider)s cannot be asked for its models right now."),
    "model_unknown": _("The provider %(provider)s does not list the model %(model)s."),
    "variable_unknown": _("Nothing replaces {{%(name)s}}: the model will read it as it is."),
    "variable_of_sessions": _(
        "Only a session with a context variable of this name replaces {{%(name)s}}: elsewhere the model will"
        " read it as it is."
    ),
    "above_platform": _("The platform ends every run after %(limit)g seconds."),
    "fallback_is_the_same": _("The fallback is the model itself: it helps nobody."),
}


class Problem(BaseModel):
    """Something about one field (`config.fallback.model`); `values` are what its message names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    code: str
    level: Level = "warning"
    values: dict[str, Any] = {}

    @property
    def message(self) -> str:
        """In the active language."""
        return str(MESSAGES[self.code]) % self.values


class Finding(Result):
    """What a check has found about one field; `code` is for programs, `message` for people."""

    field: str
    level: Level
    code: str
    message: str


class AgentValidation(Result):
    """What is known about a version: `invalid` will not answer; `warnings` may.

    `checked_at` is null when only the tier has been looked at, which is done whenever an agent is shown.
    """

    status: Status
    checked_at: datetime.datetime | None
    version: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class TierValidation:
    """A configuration measured by a tier."""

    tier: Tier
    problems: tuple[Problem, ...] = field(default=())

    @property
    def reasons(self) -> dict[str, str]:
        """Field to reason, as an answer of 422 shows them."""
        return {problem.field: problem.message for problem in self.problems}


def tier_validation(config: AgentConfig, tier: Tier) -> TierValidation:
    """Everything of the configuration that the tier does not allow. No query."""
    return TierValidation(tier, tuple(_tier_problems(config, tier)))


def _tier_problems(config: AgentConfig, tier: Tier) -> Iterator[Problem]:
    def problem(name: str, code: str, limit: float | None = None) -> Problem:
        values = {"tier": tier.name} if limit is None else {"tier": tier.name, "limit": limit}
        return Problem(field=f"config.{name}", code=code, values=values)

    for place, provider, model in asked_models(config):
        if not tier.allows_model(model):
            yield problem(f"{place}model", "model_not_allowed")
        if not tier.own_providers and provider not in BUILT_IN_PROVIDERS:
            yield problem(f"{place}provider", "provider_not_allowed")
    if tier.max_run_seconds is not None and (config.timeout_seconds or 0) > tier.max_run_seconds:
        yield problem("timeout_seconds", "run_too_long", tier.max_run_seconds)
    if tier.max_output_tokens is not None and (config.max_output_tokens or 0) > tier.max_output_tokens:
        yield problem("max_output_tokens", "output_too_long", tier.max_output_tokens)


def asked_models(config: AgentConfig) -> list[tuple[str, str, str]]:
    """Whom the agent asks: (prefix of the field's name, provider, model), its own model first."""
    asked = [("", config.provider, config.model)]
    if config.fallback is not None:
        asked.append(("fallback.", config.fallback.provider, config.fallback.model))
    return asked


def text_problems(config: AgentConfig, longest: float) -> Iterator[Problem]:
    """What the configuration itself shows; `longest` is the platform's bound of a run, in seconds."""
    for name, known, code in (
        ("instructions", PROMPT_VARIABLES, "variable_of_sessions"),
        ("greeting", (), "variable_unknown"),
    ):
        for variable in sorted(placeholders(getattr(config, name)).difference(known)):
            yield Problem(field=f"config.{name}", code=code, values={"name": variable})
    if (config.timeout_seconds or 0) > longest:
        yield Problem(field="config.timeout_seconds", code="above_platform", values={"limit": longest})
    own, *others = [(provider, model) for _place, provider, model in asked_models(config)]
    if own in others:
        yield Problem(field="config.fallback", code="fallback_is_the_same")


def check_config(config: AgentConfig) -> None:
    """What every new version of the current tenant has to pass. Raises ValidationFailed.

    A provider of the tenant's own cannot disappear until the end of the transaction.
    """
    tier = Tenant.objects.select_related("tier").get(pk=current_tenant_id()).tier
    refused = tier_validation(config, tier).reasons
    for place, provider, _model in asked_models(config):
        if provider in BUILT_IN_PROVIDERS:
            continue
        rows = ProviderCredential.objects.select_for_update(no_key=True).filter(name=provider)
        if not rows.exists():
            unknown = Problem(
                field=f"config.{place}provider", code="provider_unknown", values={"provider": provider}
            )
            refused.setdefault(unknown.field, unknown.message)
    if refused:
        raise ValidationFailed(details=refused)


def check_room(count: int = 1) -> None:
    """Whether the current tenant may have so many agents more. Raises TooManyAgents.

    Until the end of the transaction nobody else makes one where the tier counts them.
    """
    tier = Tenant.objects.select_related("tier").get(pk=current_tenant_id()).tier
    if tier.max_agents is None:
        return
    Tenant.objects.select_for_update(no_key=True).get(pk=current_tenant_id())
    if Agent.objects.filter(deleted_at=None).count() + count > tier.max_agents:
        raise TooManyAgents(tier.name, tier.max_agents)


def bounded(config: AgentConfig, limits: TenantLimits) -> AgentConfig:
    """The configuration within the tier's bounds for a run, which hold from the next run on."""
    return config.model_copy(
        update={
            "timeout_seconds": _least(config.timeout_seconds, limits.max_run_seconds),
            "max_output_tokens": _least(config.max_output_tokens, limits.max_output_tokens),
        }
    )


def _least(own: Any, bound: Any) -> Any:
    return min((value for value in (own, bound) if value is not None), default=None)


def kept(version: int, problems: Iterable[Problem], checked_at: datetime.datetime) -> dict[str, Any]:
    """A check's result as the agent's row keeps it: without words, which every reader gets in their own."""
    return {
        "version": version,
        "checked_at": checked_at.isoformat(),
        "problems": [problem.model_dump(mode="json") for problem in problems],
    }


def validation_of(agent: Agent) -> AgentValidation | None:
    """What is known about the newest version: what its check has found, and what the tier says now.

    None when it has not been checked and fits. No query, if the version and the tier are loaded.
    """
    assert agent.version is not None
    problems = _tier_says(agent, agent.tenant.tier)
    found: dict[str, Any] | None = agent.validation
    if found is not None and found["version"] == agent.version.number:
        problems += [Problem(**values) for values in found["problems"]]
    elif problems:
        found = None  # an older version's check says nothing about this one
    else:
        return None
    levels = {problem.level for problem in problems}
    return AgentValidation(
        status="invalid" if "error" in levels else "warnings" if levels else "valid",
        checked_at=datetime.datetime.fromisoformat(found["checked_at"]) if found else None,
        version=agent.version.number,
        findings=tuple(
            Finding(field=item.field, level=item.level, code=item.code, message=item.message)
            for item in problems
        ),
    )


@finds_misfits
def agents_that_do_not_fit(tier: Tier, tenants: QuerySet[Tenant]) -> Iterator[Misfit]:
    """Agents whose newest or published version the tier would refuse, and tenants with too many of them."""
    agents = Agent.unscoped.filter(deleted_at=None, tenant__in=tenants)
    if tier.max_agents is not None:
        counts = agents.values("tenant_id").order_by("tenant_id").annotate(agents=Count("pk"))
        for tenant_id, count in counts.filter(agents__gt=tier.max_agents).values_list("tenant_id", "agents"):
            subject = ngettext("%(count)s agent", "%(count)s agents", count) % {"count": count}
            reason = gettext("The tier %(tier)s allows %(limit)d agents.")
            yield Misfit(tenant_id, subject, reason % {"tier": tier.name, "limit": tier.max_agents})
    for agent in agents.select_related("version", "published").order_by("tenant_id", "pk").iterator():
        for reason in dict.fromkeys(problem.message for problem in _tier_says(agent, tier)):
            yield Misfit(agent.tenant_id, agent.name, reason)


def _tier_says(agent: Agent, tier: Tier) -> list[Problem]:
    """Of the newest version, and of the one that answers, if that is another."""
    versions = dict.fromkeys(version for version in (agent.version, agent.published) if version is not None)
    found = [tier_validation(AgentConfig(**version.config), tier).problems for version in versions]
    return [
        problem
        for at, problems in enumerate(found)
        for problem in problems
        if problem not in sum(found[:at], ())
    ]


class AgentRecordValidationAction(Action[None]):
    """Keep what a check of that version has found, and tell it."""

    verb = "agent.record_validation"

    agent_id: uuid.UUID
    version: int
    problems: tuple[Problem, ...]
