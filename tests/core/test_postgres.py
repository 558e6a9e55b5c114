"""A PostgreSQL that is away holds nobody up for longer than said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection

from core.breaker import Breaker
from core.postgres import base
from core.postgres.base import DatabaseWrapper

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
