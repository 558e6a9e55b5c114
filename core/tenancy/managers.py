"""The manager through which our code reads a tenant's rows."""

from __future__ import annotations

from typing import TypeVar

from django.db import models

from core.tenancy.scope import current_tenant_id

M = TypeVar("M", bound=models.Model)


class TenantManager(models.Manager[M]):
    """Rows of the current tenant only; raises NoTenantScope outside a scope.

    Crossing tenants needs the word `unscoped`, the model's other manager.
    """

    def get_queryset(self) -> models.QuerySet[M]:
        return super().get_queryset().filter(tenant_id=current_tenant_id())
