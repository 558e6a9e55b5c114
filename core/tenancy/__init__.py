"""Tenancy that fails closed: no tenant, no rows."""

from core.tenancy.managers import TenantManager
from core.tenancy.scope import (
    NoTenantScope,
    across_tenants,
    current_tenant_id,
    tenant_scope,
    tenants_scope,
)

__all__ = [
    "NoTenantScope",
    "TenantManager",
    "across_tenants",
    "current_tenant_id",
    "tenant_scope",
    "tenants_scope",
]
