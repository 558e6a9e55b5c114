"""Who may do what: measured at every door, and equal to the committed table, roles.txt.

A line of HTTP has the route, the verb that it executes, and who gets in; a line of the console has the
page's table and the roles that see and change it. Actions that no route executes stand at the end.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client
from django.urls import reverse

from core import ratelimits
from core.actions import bus
from core.actions.registry import all_handlers
from core.admin.roles import may, seen_by_person, shown_on_page
from core.models.access import SCOPES
from core.models.membership import Role
from core.postgres.cursors import tenant_column
from orchestrator.access import Resume
from tests.factories import make_key, make_person, make_tenant
from tests.isolation.doors import ask
from tests.isolation.routes import ROUTES
from tests.isolation.world import World

TABLE = Path(__file__).with_name("roles.txt")
REFUSED = (401, 403)
BACKEND = "django.contrib.auth.backends.ModelBackend"


class Executed(list[str]):
    """Verbs, in the order in which they were executed: the door's is the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        handler_of = bus.handler_of

        def look(action: Any) -> Any:
            self.append(action.verb)
            return handler_of(action)

        monkeypatch.setattr(bus, "handler_of", look)


def principals(world: World) -> dict[str, dict[str, str]]:
    """Everybody who may knock, by what they show."""
    resume = Resume(world.slug, world.session.key, 0).token()
    keys = {scope: bearer(make_key(world.tenant, (scope,))[1]) for scope in SCOPES}
    return {
        "anonymous": {},
        "resume": {"Nooble-Resume": resume},
        "service": bearer(settings.SERVICE_TOKEN),
        **keys,
    }


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def shortened(names: list[str]) -> str:
    if set(SCOPES) <= set(names):
        names = [name for name in names if name not in SCOPES] + ["any-key"]
    return " ".join(names)


@pytest.fixture
def measured(db: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    world = World()
    executed = Executed(monkeypatch)
    who = principals(world)
    lines, reached = [], set()
    for (method, route), case in sorted(ROUTES.items(), key=lambda item: (item[0][1], item[0][0])):
        monkeypatch.setattr(ratelimits._counters().storage, "key_prefix", secrets.token_hex(8))
        let_in, verb = [], "-"
        for name, headers in who.items():
            executed.clear()
            with transaction.atomic():
                answer = ask(method, route, case, world.ids, world.ids, headers)
                transaction.set_rollback(True)
            assert answer.status_code != 429, (name, route)
            if answer.status_code not in REFUSED:
                let_in.append(name)
                verb = executed[0] if executed else verb
                reached |= set(executed)
        lines.append(f"{method} {route} | {verb} | {shortened(let_in)}")
    rest = {handler.action.verb for handler in all_handlers()} - reached
    return [*lines, "", *console(), "", *(f"no route | {verb}" for verb in sorted(rest))]


def console() -> list[str]:
    tenant = make_tenant()
    people = {
        "nobody": make_person(),
        **{role.value: make_person((tenant, role)) for role in Role},
        "superuser": User.objects.create_superuser("operator"),
    }
    lines = []
    for model, page in sorted(admin.site._registry.items(), key=lambda item: item[0]._meta.label):
        if not tenant_column(model):
            continue
        row = model(tenant=tenant) if model._meta.label != "core.Tenant" else tenant
        rights = []
        for verb in ("view", "change"):
            let_in = [name for name, person in people.items() if may(person, verb, model, row)]
            assert let_in == [name for name, person in people.items() if has_perm(person, verb, model)]
            rights.append(f"{verb}: {' '.join(let_in)}")
        assert page is not None
        lines.append(f"console {model._meta.label} | {' | '.join(rights)}")
    return lines


def has_perm(person: User, verb: str, model: Any) -> bool:
    """What Django's own pages ask."""
    meta = model._meta
    return person.has_perm(f"{meta.app_label}.{verb}_{meta.model_name}")


def test_who_may_do_what(measured: list[str]) -> None:
    assert measured == TABLE.read_text().rstrip("\n").split("\n")


@pytest.mark.django_db
def test_a_page_finds_what_the_role_may_see_and_change(rf: Any) -> None:
    """A person who only looks at one tenant and owns another changes rows of the other only."""
    seen, owned = World(), World()
    person = make_person((seen.tenant, Role.VIEWER), (owned.tenant, Role.OWNER))
    for page in admin.site._registry.values():
        model = page.model
        column = tenant_column(model)
        if not column:
            continue
        looks = {owned.slug} if page.seen_by == Role.OWNER else {seen.slug, owned.slug}
        for method, found in (("get", looks), ("post", {owned.slug} if page.changed_by else set())):
            request = getattr(rf, method)("/admin/")
            request.user, request.resolver_match = person, None
            with seen_by_person(person), shown_on_page(request, page):
                rows = model._base_manager.exclude(**{column: None})
                assert set(rows.values_list(column, flat=True)) == found, model


@pytest.mark.django_db
def test_a_list_of_people_is_the_owners(client: Client) -> None:
    """Also where somebody owns another tenant: rows are asked for while the page is written."""
    seen, owned = World(), World()
    client.force_login(make_person((seen.tenant, Role.VIEWER), (owned.tenant, Role.OWNER)), BACKEND)
    text = client.get(reverse("admin:core_membership_changelist")).content.decode()
    assert owned.owner.username in text
    assert seen.owner.username not in text
