"""Every action, in a tenant's scope, with another's ids: as with ids that nobody has."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from django.core.exceptions import ObjectDoesNotExist
from django.db import IntegrityError, transaction

from core.actions.registry import all_handlers, build, handler_of
from core.errors import NoobleError
from core.models import Task
from core.tenancy import tenant_scope
from tests.factories import claim, make_task
from tests.isolation.actions import TRIES, Nobodys, Try
from tests.isolation.doors import filled
from tests.isolation.world import World, absent_like, everything, of

NAMED = [(verb, line) for verb, line in sorted(TRIES.items()) if isinstance(line, Try)]


@pytest.fixture
def mine(db: None) -> World:
    return World()


@pytest.fixture
def theirs(db: None) -> World:
    return World()


def outcome(verb: str, line: Try, mine: World, tried: dict[str, Any]) -> tuple[str, str]:
    """What comes of it: `ok` or the error's name, and what it says."""
    fields = filled(line.fields, mine.ids, tried)
    if "actor" in {
        field
        for handler in all_handlers()
        for field in [*handler.action.model_fields]
        if handler.action.verb == verb
    }:
        fields["actor"] = "test"
    with tenant_scope(mine.slug):
        action = build(verb, fields)
        handler = handler_of(action)
        try:
            with transaction.atomic():
                if handler.by_worker:
                    task = claim(make_task(mine.tenant, action=verb, payload=action.payload()))
                    settled = handler.function(action, task)
                    return settled.status, str(settled.error)
                handler.function(action)
        except NoobleError as error:
            return error.type, f"{error} {error.details}"
        except (ObjectDoesNotExist, IntegrityError) as error:
            return type(error).__name__, ""
    return "ok", ""


def test_every_action_has_a_line() -> None:
    found = {handler.action.verb for handler in all_handlers()}
    assert found - TRIES.keys() == set(), "give each of these a line in actions.py"
    assert TRIES.keys() - found == set(), "nobody handles these any more"


@pytest.mark.parametrize(("verb", "line"), NAMED, ids=[verb for verb, _line in NAMED])
def test_what_is_anothers_is_not_there(mine: World, theirs: World, verb: str, line: Try) -> None:
    absent = absent_like(theirs.ids)
    before, untouched = everything(), of(theirs)
    foreign = outcome(verb, line, mine, theirs.ids)
    after = everything()
    nothing = outcome(verb, line, mine, absent)
    assert without_ids(foreign, theirs.ids) == without_ids(nothing, absent)
    assert of(theirs) == untouched
    if line.nothing:
        assert foreign[0] == "ok"
    else:
        assert foreign[0] not in ("ok", Task.Status.COMPLETED)
        if not handler_by_worker(verb):
            assert after == before


def handler_by_worker(verb: str) -> bool:
    return next(handler.by_worker for handler in all_handlers() if handler.action.verb == verb)


def without_ids(told: tuple[str, str], ids: dict[str, Any]) -> tuple[str, str]:
    text = told[1]
    for value in ids.values():
        if len(str(value)) > 3:
            text = text.replace(str(value), "…")
    return told[0], text


@pytest.mark.parametrize(("verb", "line"), NAMED, ids=[verb for verb, _line in NAMED])
def test_what_is_ones_own_is(mine: World, verb: str, line: Try) -> None:
    """Else the other test would prove nothing."""
    if not line.own_is_refused:
        assert outcome(verb, line, mine, mine.ids)[0] == "ok"


def test_what_is_the_operators_is_nobody_elses() -> None:
    """None of the doors of tenants executes it."""
    operators = {
        verb for verb, line in TRIES.items() if isinstance(line, Nobodys) and "operators" in line.why
    }
    assert operators
    with suppress(KeyError):
        assert not {
            handler.action.queue for handler in all_handlers() if handler.action.verb in operators
        } - {None}
