"""Every HTTP route with another tenant's ids: as with ids that nobody has, and nothing moves."""

from __future__ import annotations

import pytest
from django.conf import settings

from tests.isolation.doors import ask, has_ids, routes, seen
from tests.isolation.routes import NOBODYS, ROUTES, Case
from tests.isolation.world import World, absent_like, everything, of, tables_without_a_row

CASES = sorted(ROUTES.items(), key=lambda item: (item[0][1], item[0][0]))
NAMED = [(door, case) for door, case in CASES if has_ids(door[1], case) and not case.public]
LISTS = [(door, case) for door, case in CASES if not has_ids(door[1], case) and door[0] == "GET"]


def ids(items: list[tuple[tuple[str, str], Case]]) -> list[str]:
    return [" ".join(door) for door, _case in items]


@pytest.fixture
def mine(db: None) -> World:
    return World()


@pytest.fixture
def theirs(db: None) -> World:
    return World()


def credentials(case: Case, world: World) -> dict[str, str]:
    token = settings.SERVICE_TOKEN if case.service else world.key
    return {"Authorization": f"Bearer {token}"}


def test_every_route_has_a_line() -> None:
    found = {(method, route) for method, route in routes() if route not in NOBODYS}
    assert found - ROUTES.keys() == set(), "give each of these a line in routes.py"
    assert ROUTES.keys() - found == set(), "nobody serves these any more"
    assert NOBODYS.keys() <= {route for _method, route in routes()}


def test_the_world_has_one_of_everything(mine: World) -> None:
    assert tables_without_a_row(mine) == set()


@pytest.mark.parametrize(("door", "case"), NAMED, ids=ids(NAMED))
def test_what_is_anothers_is_not_there(mine: World, theirs: World, door: tuple[str, str], case: Case) -> None:
    method, route = door
    headers, absent = credentials(case, mine), absent_like(theirs.ids)
    before, untouched = everything(), of(theirs)
    foreign = ask(method, route, case, mine.ids, theirs.ids, headers)
    nothing = ask(method, route, case, mine.ids, absent, headers)
    assert foreign.status_code == case.status, foreign.content
    assert seen(foreign, theirs.ids) == seen(nothing, absent)
    if case.status != 404:
        assert of(theirs) == untouched  # what was asked for is the asker's, and on the record
    else:
        assert everything() == before


@pytest.mark.parametrize(("door", "case"), CASES, ids=ids(CASES))
def test_what_is_ones_own_is(mine: World, theirs: World, door: tuple[str, str], case: Case) -> None:
    """Else the others would prove nothing; and whatever it shows, it is nobody else's."""
    answer = ask(*door, case, mine.ids, mine.ids, credentials(case, mine))
    if case.own_is_refused:
        assert answer.status_code in (409, 422, 503), answer.content
    else:
        assert answer.status_code < 400, answer.content
    text = "" if answer.streaming else answer.content.decode()
    assert not [mark for mark in theirs.marks() if mark in text]


@pytest.mark.parametrize(("door", "case"), LISTS, ids=ids(LISTS))
def test_a_list_has_ones_own_and_nothing_else(
    mine: World, theirs: World, door: tuple[str, str], case: Case
) -> None:
    text = ask(*door, case, mine.ids, mine.ids, credentials(case, mine)).content.decode()
    assert [mark for mark in mine.marks() if mark in text] or case.service
    assert not [mark for mark in theirs.marks() if mark in text]
