"""Every page of the console, as the owner of one tenant, with the ids of another."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import Model
from django.http.response import HttpResponseBase
from django.test import Client
from django.urls import reverse

from agents.models import Agent
from core.models import Tenant
from core.postgres.cursors import tenant_column
from tests.isolation.doors import ADMIN, parameters, patterns
from tests.isolation.world import World, absent_like, everything

PAGES = sorted({route for route, _pattern in patterns() if route.startswith(ADMIN)})
WITH_IDS = [route for route in PAGES if parameters(route) and "(?P<" not in route]
MODELS = sorted(admin.site._registry, key=lambda model: model._meta.label)
TENANTS = [model for model in MODELS if tenant_column(model)]

# Which of the World's ids a page asks for, where its name does not say it.
NAMES = {"task_id": "bulk_id"}
# They end the session, or the password.
LEAVING = ("admin/logout/", "admin/password_change/")
# Django's: any other address of the console, and its lists by app.
ANY = {"admin/(?P<url>.*)$": "nowhere/"}

_model = re.compile(r"admin/(\w+)/(\w+)/")


@pytest.fixture
def mine(db: None) -> World:
    return World()


@pytest.fixture
def theirs(db: None) -> World:
    return World()


@pytest.fixture
def owner(mine: World, theirs: World) -> Client:
    client = Client(raise_request_exception=True)
    client.force_login(mine.owner, "django.contrib.auth.backends.ModelBackend")
    return client


def row_of(model: type[Model], world: World) -> Any:
    """The key of the world's row; of what has no tenant, of one that hangs on it."""
    column = tenant_column(model)
    if column:
        return model._base_manager.filter(**{column: world.slug}).values_list("pk", flat=True).first()
    return {"auth.User": world.owner.pk, "core.Tier": world.tenant.tier_id}.get(model._meta.label, 0)


def models_by_path() -> dict[str, type[Model]]:
    return {f"{model._meta.app_label}/{model._meta.model_name}": model for model in MODELS}


def values(route: str, world: World) -> dict[str, Any]:
    """The ids that the page's address asks for."""
    found = _model.match(route)
    model = models_by_path().get("/".join(found.groups())) if found else None
    wanted: dict[str, Any] = {}
    for name in parameters(route):
        if name in ("object_id", "id") and model is not None:
            wanted[name] = str(row_of(model, world))
        elif name == "content_type_id":
            wanted[name] = str(ContentType.objects.get_for_model(Agent).pk)
        elif name == "object_id":
            wanted[name] = world.ids["agent_id"]
        else:
            wanted[name] = world.ids[NAMES.get(name, name)]
    return wanted


def address(route: str, wanted: dict[str, Any]) -> str:
    if route in ANY:
        return f"/{ADMIN}{ANY[route]}"
    if "(?P<app_label>" in route:
        return f"/{ADMIN}core/"
    return "/" + re.sub(r"<(?:\w+:)?(\w+)>", lambda found: str(wanted[found[1]]), route)


def ask(client: Client, method: str, path: str, body: Any = None) -> Any:
    with transaction.atomic():
        return (
            client.generic(method, path, **body) if isinstance(body, dict) else client.generic(method, path)
        )


def seen(answer: HttpResponseBase, wanted: dict[str, Any]) -> tuple[int, str]:
    place = answer.headers.get("Location", "")
    for value in sorted(map(str, wanted.values()), key=len, reverse=True):
        place = place.replace(value, "…")
    return answer.status_code, place


def text_of(answer: Any) -> str:
    return "" if answer.streaming else answer.content.decode()


def absent_of(value: str) -> str:
    """An id of the same shape that nobody has."""
    return str(10**15) if value.isdecimal() else str(absent_like({"id": value})["id"])


def shown_of(world: World, text: str) -> list[str]:
    return [mark for mark in world.marks() if mark in text]


def posted() -> dict[str, Any]:
    form = {"post": "yes", "version": "1", "reason": "x", "confirmed": "on"}
    body = "&".join(f"{name}={value}" for name, value in form.items())
    return {"data": body, "content_type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize("route", WITH_IDS)
def test_what_is_anothers_is_not_there(mine: World, theirs: World, owner: Client, route: str) -> None:
    wanted = values(route, theirs)
    absent = {name: absent_of(value) for name, value in wanted.items()}
    if "content_type_id" in wanted:
        absent["content_type_id"] = wanted["content_type_id"]
    before = everything()
    for method, body in (("GET", None), ("POST", posted())):
        foreign = ask(owner, method, address(route, wanted), body)
        nothing = ask(owner, method, address(route, absent), body)
        assert seen(foreign, wanted) == seen(nothing, absent), method
        assert foreign.status_code != 200, method
        assert not shown_of(theirs, text_of(foreign))
    assert everything() == before


@pytest.mark.parametrize("route", [route for route in PAGES if route not in WITH_IDS])
def test_pages_show_nothing_of_anybody_else(mine: World, theirs: World, owner: Client, route: str) -> None:
    told = theirs.marks() - {theirs.slug}  # what one asks for may be repeated
    for query in (
        "",
        "?q=only",
        f"?q={theirs.slug}",
        f"?tenant__id__exact={theirs.slug}",
        f"?s={theirs.slug}",
    ):
        if route.startswith(LEAVING):
            continue
        answer = ask(owner, "GET", address(route, {}) + query)
        assert answer.status_code < 500
        shown = [
            mark for mark in (told if theirs.slug in query else theirs.marks()) if mark in text_of(answer)
        ]
        assert not shown, query


@pytest.mark.parametrize("model", TENANTS, ids=lambda model: model._meta.label)
def test_ones_own_rows_are_there(mine: World, theirs: World, owner: Client, model: type[Model]) -> None:
    """Else the others would prove nothing."""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    listed = ask(owner, "GET", reverse(f"{name}_changelist"))
    assert listed.status_code == 200
    own = model._base_manager.filter(**{str(tenant_column(model)): mine.slug}).count()
    assert 1 <= listed.context["cl"].result_count <= own
    assert ask(owner, "GET", reverse(f"{name}_change", args=[row_of(model, mine)])).status_code == 200
    assert ask(owner, "GET", reverse(f"{name}_history", args=[row_of(model, mine)])).status_code == 200


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model._meta.label)
def test_an_action_on_a_list_does_nothing_to_foreign_rows(
    mine: World, theirs: World, owner: Client, model: type[Model], rf: Any
) -> None:
    path = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    request = rf.get(path)
    request.user = mine.owner
    before = everything()
    for name in admin.site._registry[model].get_actions(request):
        body = f"action={name}&_selected_action={row_of(model, theirs)}&post=yes"
        form = {"data": body, "content_type": "application/x-www-form-urlencoded"}
        answer = ask(owner, "POST", path, form)
        assert answer.status_code < 500
        assert not shown_of(theirs, text_of(answer).replace(str(row_of(model, theirs)), ""))
    assert everything() == before


def lookups() -> list[tuple[str, str, str]]:
    """(app, model, field) of everything that the console completes."""
    found = set()
    for model, page in admin.site._registry.items():
        for field in model._meta.get_fields():
            related = getattr(field, "related_model", None)
            if field.many_to_one and related in admin.site._registry and not field.auto_created:
                assert page is not None
                found.add((model._meta.app_label, str(model._meta.model_name), field.name))
    return sorted(found)


@pytest.mark.parametrize("lookup", lookups(), ids=".".join)
def test_what_is_completed_is_ones_own(
    mine: World, theirs: World, owner: Client, lookup: tuple[str, str, str]
) -> None:
    app, model, field = lookup
    for term in ("", "only", theirs.slug, theirs.owner.username):
        query = f"?app_label={app}&model_name={model}&field_name={field}&term={term}"
        answer = ask(owner, "GET", f"/{ADMIN}autocomplete/{query}")
        if answer.status_code == 200:
            found = json.loads(answer.content)["results"]
            assert not shown_of(theirs, json.dumps(found)), found
            assert theirs.owner.username not in json.dumps(found)


def test_a_new_row_is_ones_own(mine: World, theirs: World, owner: Client) -> None:
    """Every form that makes something refuses a tenant that the person does not belong to."""
    before = everything()
    tried = 0
    for model in TENANTS:
        if model is Tenant:
            continue
        path = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add")
        page = ask(owner, "GET", path)
        if page.status_code != 200:
            continue
        tried += 1
        fields = page.context["adminform"].form.fields
        assert "tenant" in fields, model
        body = f"tenant={theirs.slug}&name=x&username={mine.owner.username}&role=owner&scopes=agents%3Aread"
        form = {"data": body, "content_type": "application/x-www-form-urlencoded"}
        answer = ask(owner, "POST", path, form)
        assert answer.status_code == 200
        assert "tenant" in answer.context["adminform"].form.errors, model
    assert tried >= 4
    assert everything() == before


def test_who_belongs_to_nobody_sees_nothing(mine: World, theirs: World) -> None:
    client = Client()
    mine.owner.memberships.all().delete()
    client.force_login(mine.owner, "django.contrib.auth.backends.ModelBackend")
    for route in PAGES:
        if route in WITH_IDS or route.startswith(LEAVING):
            continue
        answer = ask(client, "GET", address(route, {}))
        assert not shown_of(mine, text_of(answer)) + shown_of(theirs, text_of(answer)), route
