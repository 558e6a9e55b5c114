"""A tenant that may ask for next to nothing."""

from __future__ import annotations

import secrets

from tests.acceptance.stack import Stack

REQUESTS = 5  # a minute

_SEED = """
from core.models import ApiKey, Tenant, Tier
from core.models.access import SCOPES
from core.tenancy import tenant_scope

name = {name!r}
with tenant_scope(name):
    tier = Tier.objects.create(slug=name, name=name, tenant_requests_per_minute={requests})
    tenant = Tenant.objects.create(id=name, name=name, tier=tier)
    key = ApiKey(tenant=tenant, name="acceptance", scopes=list(SCOPES))
    text = key.mint()
    key.save()
print(text)
"""


def limited_key(stack: Stack) -> str:
    """The key of a new tenant that may make five requests a minute."""
    name = f"limited-{secrets.token_hex(4)}"
    return stack.shell(_SEED.format(name=name, requests=REQUESTS))
