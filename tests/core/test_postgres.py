"""A PostgreSQL that is away holds nobody up for longer than said; and it is told whose rows we may see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from django.db.backends.postgresql.base import Cursor as DjangosCursor
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.breaker import Breaker
from core.models import Task, Tenant
from core.postgres import base
from core.postgres.base import DatabaseWrapper
from core.tenancy import across_tenants, tenant_scope, tenants_scope
from core.tenancy.scope import behind, current_wall
from tests.factories import make_task, make_tenant

ALIAS = "pooled"
LONG = 3600.0


@pytest.fixture
def pooled(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], DatabaseWrapper]]:
    """Makes what a thread of the web has: they share a pool of one connection."""
    breaker = Breaker(0.2, LONG, waited=base.PoolTimeout, away=base.psycopg.OperationalError)
    monkeypatch.setattr(base, "_breaker", breaker)
    monkeypatch.setattr(base, "PATIENCE", 0.2)
    pool = {"min_size": 1, "max_size": 1, "timeout": 0.2}
    options = {**connection.settings_dict["OPTIONS"], "pool": pool}
    made: list[DatabaseWrapper] = []

    def make() -> DatabaseWrapper:
        made.append(DatabaseWrapper({**connection.settings_dict, "OPTIONS": options}, ALIAS))
        return made[-1]

    yield make
    for wrapper in made:
        wrapper.close()
    make().close_pool()


def ask(wrapper: DatabaseWrapper, query: str = "SELECT pg_backend_pid()") -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def end(pid: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def test_a_connection_that_has_ended_is_given_to_nobody(pooled: Callable[[], DatabaseWrapper]) -> None:
    one = pooled()
    pid = ask(one)
    one.close()
    end(pid)
    assert ask(one) != pid


def test_one_thread_waits_in_vain_and_the_next_does_not(pooled: Callable[[], DatabaseWrapper]) -> None:
    one, other = pooled(), pooled()
    ask(one)
    with pytest.raises(OperationalError, match="couldn't get a connection"):
        ask(other)
    with pytest.raises(OperationalError, match="has just not answered"):
        ask(other)
    one.close()
    base._breaker._away_until = 1e-9
    assert ask(other)
    assert not base._breaker.is_away()


# --- Whose rows -------------------------------------------------------------------------------------

TOLD = "SELECT current_setting('nooble.tenant', true)"


class Sent(list[str]):
    """What went over the wire, a message an item."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        execute = DjangosCursor.execute

        def send(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
            self.append(str(query))
            return execute(cursor, query, *args, **options)

        # The engine's own cursor calls it for each message.
        monkeypatch.setattr(DjangosCursor, "execute", send)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(monkeypatch)


def test_a_scope_costs_no_message_of_its_own(tenant: Tenant, sent: Sent) -> None:
    other = make_tenant()
    with tenant_scope(tenant.pk):
        sent.clear()
        for _ in range(3):
            Task.objects.count()
        assert len(sent) == 3
        assert sent[0].startswith(f"SET nooble.tenant = '{tenant.pk}'; SELECT")
        assert not [message for message in sent[1:] if "SET" in message]
    with tenant_scope(other.pk):
        sent.clear()
        make_task(other)
        assert len(sent) == 1
        assert sent[0].startswith(f"SET nooble.tenant = '{other.pk}'; INSERT")
    with tenant_scope(other.pk):
        sent.clear()
        Task.objects.count()
        assert "SET" not in sent[0]


def test_what_cannot_follow_in_one_message_comes_after_it(tenant: Tenant, sent: Sent) -> None:
    with tenant_scope(tenant.pk), connection.cursor() as cursor:
        sent.clear()
        cursor.execute("SET LOCAL lock_timeout = '4s'")
        cursor.execute("SELECT 1")
    assert sent == [f"SET nooble.tenant = '{tenant.pk}'", "SET LOCAL lock_timeout = '4s'", "SELECT 1"]


def told() -> str:
    with connection.cursor() as cursor:
        cursor.execute(TOLD)
        return str(cursor.fetchone()[0])


@pytest.mark.django_db(transaction=True)
def test_what_was_told_in_a_transaction_is_undone_with_it() -> None:
    with tenant_scope("one"):
        assert told() == "one"
    with pytest.raises(ZeroDivisionError), tenant_scope("two"), transaction.atomic():
        assert told() == "two"
        raise ZeroDivisionError
    # The connection stands where "one" had left it.
    with tenant_scope("two"):
        assert told() == "two"
    with tenant_scope("one"):
        assert told() == "one"


@pytest.mark.django_db(transaction=True)
def test_a_savepoint_that_is_undone_takes_it_along() -> None:
    with transaction.atomic():
        with tenant_scope("one"):
            assert told() == "one"
        with pytest.raises(ZeroDivisionError), tenant_scope("two"), transaction.atomic():
            assert told() == "two"
            raise ZeroDivisionError
        with tenant_scope("two"):
            assert told() == "two"


@pytest.mark.django_db(transaction=True)
def test_a_statement_that_fails_has_told_nothing() -> None:
    with tenant_scope("one"):
        assert told() == "one"
    with pytest.raises(DatabaseError), tenant_scope("two"), connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")
    with tenant_scope("two"):
        assert told() == "two"


def test_many_statements_and_pieces_are_told_too(tenant: Tenant) -> None:
    other, mine = make_tenant(), make_task(tenant)
    make_task(other)
    with tenant_scope(tenant.pk):
        assert list(Task.unscoped.iterator(chunk_size=1)) == [mine]
    with tenant_scope(other.pk), connection.cursor() as cursor:
        cursor.executemany("UPDATE core_task SET attempt = 7 WHERE id = %s", [[mine.pk], [mine.pk]])
    mine.refresh_from_db()
    assert mine.attempt == 0
    with tenant_scope(tenant.pk), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        with tenant_scope(other.pk), cursor.copy("COPY (SELECT tenant_id FROM core_task) TO STDOUT") as copy:
            assert [row[0] for row in copy.rows()] == [other.pk]


# What happens to a connection between two questions, by its name.
SCOPES = st.sampled_from(["", "*", "one", "two", ",one,two"])
FATES = st.sampled_from(
    ["ask", "commit", "roll back", "undo a savepoint", "fail", "give back", "give back in a transaction"]
)


def live(wrapper: DatabaseWrapper, wall: str, fate: str) -> None:
    """Asks once, and lets the connection meet its fate."""
    with behind(wall):
        if fate == "fail":
            with pytest.raises(DatabaseError):
                ask(wrapper, "SELECT 1 / 0")
            return
        if fate in ("ask", "give back"):
            assert ask(wrapper, TOLD) == current_wall()
            if fate == "give back":
                wrapper.close()
            return
        wrapper.ensure_connection()
        wrapper.set_autocommit(False)
        savepoint = wrapper.savepoint() if fate == "undo a savepoint" else None
        assert ask(wrapper, TOLD) == current_wall()
        if fate == "give back in a transaction":
            wrapper.close()
            return
        if savepoint is not None:
            wrapper.savepoint_rollback(savepoint)
        wrapper.rollback() if fate == "roll back" else wrapper.commit()
        wrapper.set_autocommit(True)


@given(lives=st.lists(st.tuples(st.booleans(), SCOPES, FATES), max_size=12))
@hypothesis_settings(max_examples=80)
def test_no_connection_remembers_another_scope(
    pooled: Callable[[], DatabaseWrapper], lives: list[tuple[bool, str, str]]
) -> None:
    """Two threads' worth of work share one connection by way of the pool."""
    one, other = pooled(), pooled()
    for first, wall, fate in lives:
        (other if first else one).close()
        live(one if first else other, wall, fate)
        (one if first else other).close()
        with behind(wall):
            assert ask(one if first else other, TOLD) == wall
    one.close()
    other.close()


def test_threads_that_share_a_pool_see_their_own(
    committed_tenant: Tenant, pooled: Callable[[], DatabaseWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_breaker", Breaker(5, LONG, base.PoolTimeout, base.psycopg.OperationalError))
    tenants = [committed_tenant, *(make_tenant() for _ in range(3))]
    for tenant in tenants:
        make_task(tenant)
    wrappers = [pooled() for _ in tenants]
    for wrapper in wrappers:
        wrapper.settings_dict["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 2, "timeout": 20.0}
        wrapper.inc_thread_sharing()

    def work(index: int) -> set[str]:
        seen = set()
        with tenant_scope(tenants[index].pk):
            for _ in range(25):
                seen.add(ask(wrappers[index], "SELECT string_agg(tenant_id, ' ') FROM core_task"))
                wrappers[index].close()
        return seen

    with ThreadPoolExecutor(len(tenants)) as threads:
        assert list(threads.map(work, range(len(tenants)))) == [{tenant.pk} for tenant in tenants]


def test_a_scope_of_some_and_one_of_all_are_told_as_such(tenant: Tenant) -> None:
    with across_tenants():
        assert told() == "*"
    with tenants_scope([tenant.pk, "another"]):
        assert told() == "," + ",".join(sorted(["another", tenant.pk]))
    with tenants_scope([]):
        assert told() == ","
