"""The tables of the ground floor."""

from core.models.access import ApiKey, EndUserSecret
from core.models.audit import AuditEntry
from core.models.base import TenantModel
from core.models.budget import Budget, BudgetUse
from core.models.credential import ProviderCredential
from core.models.membership import Membership
from core.models.outbox import Notice
from core.models.price import ModelPrice
from core.models.task import Task
from core.models.tenant import Tenant, Tier
from core.models.usage import UsageRecord

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Budget",
    "BudgetUse",
    "EndUserSecret",
    "Membership",
    "ModelPrice",
    "Notice",
    "ProviderCredential",
    "Task",
    "Tenant",
    "TenantModel",
    "Tier",
    "UsageRecord",
]
