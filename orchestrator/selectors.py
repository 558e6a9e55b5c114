"""Named reads of the front door."""

from __future__ import annotations

import datetime
import uuid

from django.db.models import Q
from django.db.models.functions import Now

from core.errors import TaskNotFound
from core.ids import is_slug, parse_uuid
from core.models import Task
from core.models.task import FINAL
from execution.actions import ExecuteAgentAction


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


def task_is_open(task_id: uuid.UUID) -> bool:
    """Whether the current tenant's task has still to be settled."""
    return Task.objects.filter(pk=task_id).exclude(status__in=FINAL).exists()


def chat_task(text: str) -> Task:
    """The current tenant's run of that id. Raises TaskNotFound."""
    pk = parse_uuid(text)
    task: Task | None = Task.objects.filter(pk=pk, action=ExecuteAgentAction.verb).first() if pk else None
    if task is None:
        raise TaskNotFound()
    return task


def settled_before(task_id: uuid.UUID, seconds: float) -> tuple[Task, bool]:
    """The current tenant's task, and whether it was settled longer ago than that by the database's clock."""
    moment = Now() - datetime.timedelta(seconds=seconds)
    task = Task.objects.annotate(long_settled=Q(finished_at__lt=moment)).get(pk=task_id)
    return task, task.is_final and bool(task.long_settled)
