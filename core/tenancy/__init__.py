"""Tenancy that fails closed: no tenant, no rows."""

from core.tenancy.managers import TenantManager
from core.tenancy.scope import NoTenantScope, current_tenant_id, tenant_scope

__all__ = ["NoTenantScope", "TenantManager", "current_tenant_id", "tenant_scope"]
