"""The tables of the ground floor."""

from core.models.access import ApiKey
from core.models.audit import AuditEntry
from core.models.base import TenantModel
from core.models.credential import ProviderCredential
from core.models.outbox import Notice
from core.models.task import Task
from core.models.tenant import Tenant, Tier
from core.models.usage import UsageRecord

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Notice",
    "ProviderCredential",
    "Task",
    "Tenant",
    "TenantModel",
    "Tier",
    "UsageRecord",
]
