"""No tenant, no rows."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import IntegrityError, transaction

from core.models import Task, Tenant
from core.tenancy import NoTenantScope, current_tenant_id, tenant_scope
from tests.factories import make_task, make_tenant


def test_there_is_no_tenant_outside_a_scope() -> None:
    with pytest.raises(NoTenantScope):
        current_tenant_id()


def test_a_scope_needs_a_tenant() -> None:
    with pytest.raises(NoTenantScope), tenant_scope(""):
        pass


def test_scopes_nest_and_end() -> None:
    with tenant_scope("outer"):
        with tenant_scope("inner"):
            assert current_tenant_id() == "inner"
        assert current_tenant_id() == "outer"
    with pytest.raises(NoTenantScope):
        current_tenant_id()


def test_a_scope_ends_with_its_error_too() -> None:
    with pytest.raises(ZeroDivisionError), tenant_scope("demo"):
        raise ZeroDivisionError
    with pytest.raises(NoTenantScope):
        current_tenant_id()


def test_a_new_thread_has_no_tenant() -> None:
    def look() -> str:
        try:
            return current_tenant_id()
        except NoTenantScope:
            return "none"

    with tenant_scope("demo"), ThreadPoolExecutor(1) as threads:
        assert threads.submit(look).result() == "none"


def test_a_pool_thread_keeps_nothing_of_the_last_tenant() -> None:
    def enter(tenant_id: str) -> str:
        with tenant_scope(tenant_id):
            return current_tenant_id()

    def outside() -> bool:
        try:
            current_tenant_id()
        except NoTenantScope:
            return True
        return False

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(enter, "demo").result() == "demo"
        assert threads.submit(outside).result()


async def test_coroutines_side_by_side_keep_their_own_tenants() -> None:
    met = asyncio.Barrier(2)

    async def visit(tenant_id: str) -> str:
        with tenant_scope(tenant_id):
            await met.wait()
            await asyncio.sleep(0)
            return current_tenant_id()

    assert await asyncio.gather(visit("a"), visit("b")) == ["a", "b"]
    with pytest.raises(NoTenantScope):
        current_tenant_id()


async def test_a_coroutine_inherits_the_tenant_and_cannot_change_its_parents() -> None:
    async def wander() -> str:
        inherited = current_tenant_id()
        with tenant_scope("elsewhere"):
            await asyncio.sleep(0)
        return inherited

    with tenant_scope("demo"):
        assert await asyncio.create_task(wander()) == "demo"
        assert current_tenant_id() == "demo"


async def test_the_tenant_goes_along_into_a_worker_thread_and_back() -> None:
    with tenant_scope("demo"):
        assert await sync_to_async(current_tenant_id, thread_sensitive=False)() == "demo"
        assert await sync_to_async(lambda: async_to_sync(_current)())() == "demo"


async def _current() -> str:
    return current_tenant_id()


def test_rows_cannot_be_asked_for_outside_a_scope(tenant: Tenant) -> None:
    make_task(tenant)
    for ask in (Task.objects.all, Task.objects.count, Task.objects.first, Task.objects.none):
        with pytest.raises(NoTenantScope):
            ask()
    with pytest.raises(NoTenantScope):
        Task.objects.filter(tenant_id=tenant.pk)


def test_a_scope_shows_its_own_rows_only(tenant: Tenant) -> None:
    mine, foreign = make_task(tenant), make_task(make_tenant())
    with tenant_scope(tenant.pk):
        assert list(Task.objects.all()) == [mine]
        assert not Task.objects.filter(pk=foreign.pk).exists()
        assert Task.objects.filter(pk=foreign.pk).update(attempt=9) == 0
        assert Task.objects.filter(pk=foreign.pk).delete()[0] == 0
        assert list(Task.objects.filter(tenant_id=foreign.tenant_id)) == []
    assert Task.unscoped.get(pk=foreign.pk).attempt == 0


def test_a_query_stays_with_the_tenant_that_asked_it(tenant: Tenant) -> None:
    """In another's scope it finds nothing: neither his rows nor its own."""
    mine, other = make_task(tenant), make_tenant()
    make_task(other)
    with tenant_scope(tenant.pk):
        query = Task.objects.all()
    with tenant_scope(other.pk):
        assert list(query.all()) == []
    with tenant_scope(tenant.pk):
        assert list(query) == [mine]


def test_crossing_tenants_takes_the_word_unscoped(tenant: Tenant) -> None:
    tasks = {make_task(tenant), make_task(make_tenant())}
    assert set(Task.unscoped.filter(pk__in=[task.pk for task in tasks])) == tasks


def test_no_row_falls_to_a_default_tenant(db: None) -> None:
    make_tenant("default"), make_tenant("demo")
    with pytest.raises(IntegrityError), transaction.atomic():
        Task.unscoped.create(action="x", payload={}, queue="q", priority=5, global_task_id=make_uuid())


def make_uuid() -> str:
    return "00000000-0000-7000-8000-000000000000"
