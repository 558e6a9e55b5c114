"""The tables of the ground floor."""

from core.models.access import ApiKey
from core.models.base import TenantModel
from core.models.task import Task
from core.models.tenant import Tenant, Tier
from core.models.usage import UsageRecord

__all__ = ["ApiKey", "Task", "Tenant", "TenantModel", "Tier", "UsageRecord"]
