"""What every table of a tenant has."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from core.models.tenant import Tenant
from core.tenancy import TenantManager


class TenantModel(models.Model):
    """A row that belongs to one tenant.

    `objects` raises outside a tenant scope. `unscoped` is Django's own door (admin, migrations,
    relations) and the word that our code must spell out to cross tenants.
    """

    tenant = models.ForeignKey(Tenant, verbose_name=_("tenant"), on_delete=models.CASCADE, related_name="+")

    objects: ClassVar[TenantManager[Any]] = TenantManager()
    unscoped: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        abstract = True
        default_manager_name = "unscoped"
