"""What a tier allows, as runs and requests need it."""

from __future__ import annotations

import pytest

from core.errors import TenantNotFound
from core.models import Tenant, Tier
from core.queues.names import Priority
from core.selectors import tenant_limits
from tests.conftest import forget_cached_rows
from tests.factories import make_tenant


def test_limits_are_the_tiers(db: None) -> None:
    tenant = make_tenant(priority_ceiling=4, uses_environment_keys=False)
    limits = tenant_limits(tenant.pk)
    assert (limits.priority_ceiling, limits.uses_environment_keys) == (4, False)


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (4, 4), (5, 4), (9, 4)])
def test_a_priority_above_the_ceiling_is_lowered_to_it(db: None, asked: int, given: int) -> None:
    tenant = make_tenant(priority_ceiling=4)
    assert tenant_limits(tenant.pk).cap_priority(Priority(asked)) is Priority(given)


@pytest.mark.parametrize("tenant_id", ["nobody", "", "_system", "x" * 500])
def test_unknown_tenants(db: None, tenant_id: str) -> None:
    with pytest.raises(TenantNotFound):
        tenant_limits(tenant_id)


def test_a_new_tenant_is_found_at_once(db: None) -> None:
    with pytest.raises(TenantNotFound):
        tenant_limits("newcomer")
    make_tenant("newcomer")
    assert tenant_limits("newcomer").priority_ceiling == 9


def test_a_change_of_tier_is_in_force_once_the_cache_forgets(tenant: Tenant) -> None:
    tenant_limits(tenant.pk)
    Tier.objects.filter(pk=tenant.tier_id).update(priority_ceiling=1)
    assert tenant_limits(tenant.pk).priority_ceiling == 9
    forget_cached_rows()
    assert tenant_limits(tenant.pk).priority_ceiling == 1
