"""Two walls stand between tenants, the managers and the database's policies, and each holds alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import ProgrammingError, connection, models, transaction

from agents.models import AgentTemplate
from core.actions import sweeper
from core.audit import record
from core.broker.doctor import Verdict
from core.management.commands import doctor
from core.models import AuditEntry, Task, Tenant
from core.postgres.cursors import tenant_column, tenant_tables
from core.postgres.row_security import bypassed_by, unprotected
from core.tenancy import (
    NoTenantScope,
    TenantManager,
    across_tenants,
    current_tenant_id,
    tenant_scope,
    tenants_scope,
)
from core.tenancy.scope import NO_TENANT, behind, current_wall
from tests.factories import make_agent, make_task, make_tenant, random_slug

REFUSED = "violates row-level security policy"


@pytest.fixture
def no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first wall is gone: `objects` adds nothing to a query."""
    monkeypatch.setattr(TenantManager, "get_queryset", models.Manager.get_queryset)


def templates() -> dict[str, Any]:
    return {"slug": random_slug(), "name": "Template", "type": "x", "config": {}}


def test_every_table_of_tenants_has_the_wall(db: None) -> None:
    tables = tenant_tables()
    assert {"core_tenant", "core_task", "agents_agenttemplate", "conversations_message"} <= tables
    assert unprotected(tables) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "DROP POLICY tenant ON core_task",
        "ALTER TABLE core_task DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE core_task NO FORCE ROW LEVEL SECURITY",
    ],
    ids=["no policy", "disabled", "not forced"],
)
def test_a_table_that_stands_open_is_noticed(db: None, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
    assert unprotected(tenant_tables()) == {"core_task"}


def test_a_table_without_any_wall_is_noticed(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE a_new_one (tenant_id varchar(40))")
    assert unprotected({"a_new_one", "core_task"}) == {"a_new_one"}


def test_all_policies_say_the_same(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT polrelid::regclass::text, polname, polcmd, polpermissive, polwithcheck IS NULL,"
            " pg_get_expr(polqual, polrelid) FROM pg_policy"
        )
        found = cursor.fetchall()
    columns = {model._meta.db_table: tenant_column(model) for model in apps.get_models()}
    told = {
        (name, command, permissive, no_check, expression.replace(f"({columns[table]})::text", "COLUMN"))
        for table, name, command, permissive, no_check, expression in found
        if name == "tenant"
    }
    assert len(told) == 1
    assert {table for table, name, *_ in found if name == "tenant"} == tenant_tables()
    assert {table for table, name, *_ in found if name != "tenant"} == {
        "agents_agenttemplate",
        "core_modelprice",
    }


def test_the_role_of_the_tests_is_bound_by_policies(db: None) -> None:
    assert bypassed_by() is None


@pytest.mark.usefixtures("no_filter")
def test_the_database_alone_hides_foreign_rows(tenant: Tenant) -> None:
    mine, foreign = make_task(tenant), make_task(make_tenant())
    with tenant_scope(tenant.pk):
        assert list(Task.objects.all()) == list(Task.unscoped.all()) == [mine]
        assert not Task.unscoped.filter(pk=foreign.pk).exists()
        assert Task.unscoped.filter(tenant_id=foreign.tenant_id).count() == 0
        assert list(Task.unscoped.raw("SELECT * FROM core_task")) == [mine]
        assert list(Tenant.objects.values_list("pk", flat=True)) == [tenant.pk]


@pytest.mark.usefixtures("no_filter")
def test_the_database_alone_keeps_foreign_rows_as_they_are(tenant: Tenant) -> None:
    foreign = make_task(make_tenant())
    with tenant_scope(tenant.pk):
        assert Task.unscoped.filter(pk=foreign.pk).update(attempt=9) == 0
        assert Task.unscoped.filter(pk=foreign.pk).delete()[0] == 0
        assert not Task.mark_queued(foreign.pk)
        assert Task.claim(foreign.pk, foreign.tenant_id, 60) is None
    assert Task.unscoped.get(pk=foreign.pk).attempt == 0


@pytest.mark.usefixtures("no_filter")
def test_nobody_writes_a_row_for_somebody_else(tenant: Tenant) -> None:
    other, mine = make_tenant(), make_task(tenant)
    with tenant_scope(tenant.pk):
        with pytest.raises(ProgrammingError, match=REFUSED), transaction.atomic():
            make_task(other)
        with pytest.raises(ProgrammingError, match=REFUSED), transaction.atomic():
            Task.unscoped.filter(pk=mine.pk).update(tenant=other)
        with pytest.raises(ProgrammingError, match=REFUSED), transaction.atomic():
            Tenant.objects.create(id=random_slug(), name="New", tier=tenant.tier)
    assert Task.unscoped.get(pk=mine.pk).tenant_id == tenant.pk


def test_the_managers_alone_hide_foreign_rows(tenant: Tenant) -> None:
    """The second wall is gone: no policy holds."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE core_task NO FORCE ROW LEVEL SECURITY")
    mine, foreign = make_task(tenant), make_task(make_tenant())
    with tenant_scope(tenant.pk):
        assert set(Task.unscoped.filter(pk__in=[mine.pk, foreign.pk])) == {mine, foreign}
        assert list(Task.objects.all()) == [mine]
        assert Task.objects.filter(pk=foreign.pk).update(attempt=9) == 0


def test_a_raw_connection_sees_and_writes_nothing(committed_tenant: Tenant) -> None:
    make_task(committed_tenant)
    with psycopg.connect(**raw(), autocommit=True) as stranger:
        assert stranger.execute("SELECT count(*) FROM core_task").fetchone() == (0,)
        assert stranger.execute("SELECT count(*) FROM core_tenant").fetchone() == (0,)
        assert stranger.execute("UPDATE core_task SET attempt = 9").rowcount == 0
        assert stranger.execute("DELETE FROM core_task").rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=REFUSED):
            stranger.execute(
                "INSERT INTO core_tenant (id, name, tier_id, created_at) VALUES ('x', 'x', %s, now())",
                [committed_tenant.tier_id],
            )
        # As somebody who was told a tenant, and has forgotten it.
        stranger.execute("SET nooble.tenant = 'x'")
        stranger.execute("RESET nooble.tenant")
        assert stranger.execute("SELECT count(*) FROM core_task").fetchone() == (0,)


def raw() -> dict[str, Any]:
    """Where the test's database is, for a connection that is not of our engine."""
    wanted = ("dbname", "user", "password", "host", "port")
    return {name: value for name, value in connection.get_connection_params().items() if name in wanted}


def look_without_a_tenant() -> list[Callable[[], object]]:
    def spelled_out() -> object:
        with connection.cursor() as cursor:
            return cursor.execute("SELECT 1 FROM core_task")

    return [
        Task.unscoped.first,
        lambda: list(Task.unscoped.iterator()),
        lambda: Task.unscoped.update(attempt=9),
        lambda: Task.unscoped.all().delete(),
        lambda: Tenant.objects.first(),
        lambda: AgentTemplate.objects.first(),
        spelled_out,
    ]


def test_outside_every_scope_rows_of_tenants_are_a_bug(tenant: Tenant) -> None:
    """The database would answer: none. Work that has forgotten its scope would do nothing, in silence."""
    make_task(tenant)
    with behind(NO_TENANT):
        for look in look_without_a_tenant():
            with pytest.raises(NoTenantScope, match="across_tenants"), transaction.atomic():
                look()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_people_of_some_tenants_see_the_rows_of_those(tenant: Tenant) -> None:
    mine, also_mine, foreign = make_task(tenant), make_task(make_tenant()), make_task(make_tenant())
    with tenants_scope([tenant.pk, also_mine.tenant_id]):
        assert set(Task.unscoped.all()) == {mine, also_mine}
        with pytest.raises(NoTenantScope):
            Task.objects.all()
        with pytest.raises(ProgrammingError, match=REFUSED), transaction.atomic():
            make_task(foreign.tenant)
        with tenant_scope(tenant.pk):
            assert list(Task.unscoped.all()) == [mine]
        with pytest.raises(NoTenantScope), tenant_scope(foreign.tenant_id):
            pass
    with tenants_scope([]):
        assert list(Task.unscoped.all()) == []
        with pytest.raises(NoTenantScope), tenant_scope(tenant.pk):
            pass


@pytest.mark.parametrize("word", ["*", ",", "a,b", "a'", "a; b", "A", "é", " ", "x" * 41])
def test_only_a_tenants_id_is_a_tenant(word: str) -> None:
    with pytest.raises(NoTenantScope), tenant_scope(word):
        pass
    with pytest.raises(NoTenantScope), tenants_scope([word]):
        pass


def test_what_is_nobodys_is_seen_by_tenants_where_it_is_shared(tenant: Tenant) -> None:
    shared = AgentTemplate.objects.create(tenant=None, **templates())
    mine = AgentTemplate.objects.create(tenant=tenant, **templates())
    AgentTemplate.objects.create(tenant=make_tenant(), **templates())
    with tenant_scope(tenant.pk):
        assert set(AgentTemplate.objects.all()) == {shared, mine}
        assert AgentTemplate.objects.filter(pk=shared.pk).update(name="mine now") == 0
        assert AgentTemplate.objects.filter(pk=shared.pk).delete()[0] == 0
        with pytest.raises(ProgrammingError, match=REFUSED), transaction.atomic():
            AgentTemplate.objects.create(tenant=None, **templates())
        with pytest.raises(ProgrammingError, match=REFUSED), transaction.atomic():
            AgentTemplate.objects.filter(pk=mine.pk).update(tenant=None)


def test_the_platforms_own_record_is_nobodys(tenant: Tenant) -> None:
    for tenant_id in (None, tenant.pk):
        record("tier.update", "tier", "x", tenant_id=tenant_id, before={}, after={"name": "x"})
    with tenant_scope(tenant.pk):
        assert [entry.tenant_id for entry in AuditEntry.unscoped.filter(object_id="x")] == [tenant.pk]


def test_crossing_tenants_takes_a_word_also_inside_of_one(tenant: Tenant) -> None:
    tasks = {make_task(tenant), make_task(make_tenant())}
    with tenant_scope(tenant.pk):
        with across_tenants():
            assert set(Task.unscoped.all()) == tasks
            with pytest.raises(NoTenantScope):
                current_tenant_id()
        assert current_tenant_id() == tenant.pk


def test_what_follows_a_commit_is_its_askers(committed_tenant: Tenant) -> None:
    heard = []
    with across_tenants(), transaction.atomic():
        with tenant_scope(committed_tenant.pk):
            transaction.on_commit(lambda: heard.append(current_wall()))
        assert heard == []
    assert heard == [committed_tenant.pk]


def test_a_foreign_key_is_checked_across_the_wall(tenant: Tenant) -> None:
    """PostgreSQL looks past the policies there: a reference to nothing is refused, as ever."""
    agent = make_agent(tenant)
    with tenant_scope(tenant.pk):
        assert agent.versions.count() == 1
        agent.refresh_from_db()


def test_the_doctor_looks_at_the_wall(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind(NO_TENANT):
        assert doctor.row_security().verdict is Verdict.OK
        monkeypatch.setattr(doctor, "bypassed_by", lambda: "postgres")
        assert doctor.row_security().verdict is Verdict.WARN
    monkeypatch.undo()
    with connection.cursor() as cursor:
        cursor.execute("DROP POLICY tenant ON core_task")
    found = doctor.row_security()
    assert (found.verdict, found.text) == (Verdict.FAIL, "open: core_task")


@pytest.mark.parametrize("chore", sweeper.chores + sweeper.leftovers, ids=lambda chore: chore.__name__)
def test_a_chore_says_that_it_crosses_tenants(db: None, chore: Callable[[], object]) -> None:
    with behind(NO_TENANT):
        chore()


def test_commands_say_whose_rows_they_mean(tenant: Tenant, capsys: pytest.CaptureFixture[str]) -> None:
    """A person at the terminal is in no scope."""
    agent = make_agent(tenant)
    make_task(tenant, status="queued")
    with behind(NO_TENANT):
        call_command("seed_templates")
        call_command("seed_prices")
        call_command("agents", "export", agent.slug, "--tenant", tenant.pk)
        call_command("queues", "purge", tenant.pk, "--domain", "agent")
        call_command(
            "shell", "--no-imports", "-c", "from core.models import Task; print(Task.unscoped.count())"
        )
    assert "1 tasks cancelled" in capsys.readouterr().out
