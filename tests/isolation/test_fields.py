"""Every route that writes, with the name of every field of every table: what is read-only stays.

The fields that a body may have are in the committed table, fields.txt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings

from core.postgres.cursors import tenant_column
from tests.isolation.doors import ask
from tests.isolation.routes import ROUTES, Case
from tests.isolation.world import World, everything

TABLE = Path(__file__).with_name("fields.txt")
WRITES = sorted(
    ((door, case) for door, case in ROUTES.items() if door[0] != "GET"),
    key=lambda item: (item[0][1], item[0][0]),
)
UNKNOWN = "Extra inputs are not permitted"


def names() -> list[str]:
    """Of every field and column of every table that has something of a tenant's."""
    found = set()
    for model in apps.get_models():
        if tenant_column(model):
            for field in model._meta.concrete_fields:
                found |= {field.name, field.attname}
    return sorted(found)


def committed() -> dict[str, str]:
    lines = (line.partition(" |") for line in TABLE.read_text().splitlines())
    return {route: fields.strip() for route, _, fields in lines}


def taken(case: Case, details: dict[str, Any]) -> str:
    """Those of the names that were not refused as unknown, and those that the case sends anyway."""
    sent = set(case.body or {})
    return " ".join(name for name in names() if name in sent or details.get(name) != UNKNOWN)


@pytest.mark.django_db
@pytest.mark.parametrize(("door", "case"), WRITES, ids=[" ".join(door) for door, _case in WRITES])
def test_a_field_that_nobody_writes_stays(door: tuple[str, str], case: Case) -> None:
    world = World()
    token = settings.SERVICE_TOKEN if case.service else world.key
    headers = {"Authorization": f"Bearer {token}"}
    extra = {name: "x" for name in names() if name not in (case.body or {})}
    before = everything()
    answer = ask(*door, case, world.ids, world.ids, headers, extra)
    fields = committed().get(" ".join(door))
    if fields == "one by one":
        # As OpenAI refuses: the first that is wrong is named.
        assert answer.status_code == 422
        assert everything() == before
        return
    if fields == "no body":
        # What is sent along is not read at all.
        assert case.body is None
        assert answer.status_code < 400
        return
    assert answer.status_code == 422, answer.content
    assert taken(case, answer.json()["error"]["details"]) == fields
    assert everything() == before


def test_the_table_has_every_route_that_writes() -> None:
    assert list(committed()) == [" ".join(door) for door, _case in WRITES]
