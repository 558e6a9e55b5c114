"""How many webhooks a tier allows."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import Count, QuerySet
from django.utils.translation import gettext, ngettext

from core.models import Tenant, Tier
from core.tenancy import current_tenant_id
from core.tiers import Misfit, finds_misfits
from orchestrator.errors import TooManyWebhooks
from orchestrator.models import WebhookEndpoint

MOST_ENDPOINTS = 50  # webhooks of a tenant of whatever tier: each notice is written once for each


def check_room() -> None:
    """Whether the current tenant may have one webhook more. Raises TooManyWebhooks.

    Until the end of the transaction nobody else makes one.
    """
    tenant = Tenant.objects.select_for_update(no_key=True, of=("self",)).select_related("tier")
    bound = tenant.get(pk=current_tenant_id()).tier.max_webhooks
    limit = MOST_ENDPOINTS if bound is None else min(MOST_ENDPOINTS, bound)
    if WebhookEndpoint.objects.count() >= limit:
        raise TooManyWebhooks(details={"limit": limit})


@finds_misfits
def webhooks_that_do_not_fit(tier: Tier, tenants: QuerySet[Tenant]) -> Iterator[Misfit]:
    """Tenants with more webhooks than the tier allows: they keep those that they have."""
    if tier.max_webhooks is None:
        return
    rows = WebhookEndpoint.unscoped.filter(tenant__in=tenants)
    counts = rows.values("tenant_id").order_by("tenant_id").annotate(webhooks=Count("pk"))
    for tenant_id, count in counts.filter(webhooks__gt=tier.max_webhooks).values_list(
        "tenant_id", "webhooks"
    ):
        subject = ngettext("%(count)s webhook", "%(count)s webhooks", count) % {"count": count}
        reason = gettext("The tier %(tier)s allows %(limit)d webhooks.")
        yield Misfit(tenant_id, subject, reason % {"tier": tier.name, "limit": tier.max_webhooks})
