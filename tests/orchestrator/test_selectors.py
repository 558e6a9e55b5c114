"""In whose scope a task is looked up."""

from __future__ import annotations

import uuid

import pytest

from core.errors import TaskNotFound
from core.models import Tenant
from orchestrator.selectors import task_tenant
from tests.factories import make_task


def test_a_tasks_id_is_enough(tenant: Tenant) -> None:
    assert task_tenant(str(make_task(tenant).pk), None) == tenant.pk


def test_a_tenant_that_is_named_is_taken_at_its_word(tenant: Tenant) -> None:
    assert task_tenant(str(make_task(tenant).pk), "other") == "other"


@pytest.mark.parametrize(
    "task_id", ["", "x", str(uuid.UUID(int=7)), "0" * 10_000, "\x00"], ids=lambda text: text[:9]
)
def test_unknown_tasks(db: None, task_id: str) -> None:
    with pytest.raises(TaskNotFound):
        task_tenant(task_id, None)


@pytest.mark.parametrize("tenant_id", ["", "_system", "Demo", "demo\n", "a:b"], ids=repr)
def test_what_cannot_be_a_tenant(tenant: Tenant, tenant_id: str) -> None:
    with pytest.raises(TaskNotFound):
        task_tenant(str(make_task(tenant).pk), tenant_id)
