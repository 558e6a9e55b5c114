"""Named reads of the front door."""

from __future__ import annotations

from core.errors import TaskNotFound
from core.ids import is_slug, parse_uuid
from core.models import Task


def task_tenant(task_id: str, tenant_id: str | None) -> str:
    """The tenant in whose scope the task is looked up: the one named, else the task's own.

    Raises TaskNotFound.
    """
    if tenant_id is not None:
        if not is_slug(tenant_id):
            raise TaskNotFound()
        return tenant_id
    pk = parse_uuid(task_id)
    found = Task.unscoped.filter(pk=pk).values_list("tenant_id", flat=True).first() if pk else None
    if found is None:
        raise TaskNotFound()
    return str(found)
