"""Queues and dead letters in the console."""

from __future__ import annotations

import pytest
import redis
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from core.admin import queues
from core.broker import figures
from core.models import Tenant
from core.models.membership import Role
from tests.core.broker.broker import Broker
from tests.factories import make_person, make_tenant

QUEUES, FIGURES, DEAD = (reverse(f"queues:{name}") for name in ("queues", "figures", "dead_letters"))
PAGES = (QUEUES, FIGURES, DEAD)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(figures, "ROOT", made.root)
    return made


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=1)
    monkeypatch.setattr(figures.valkey, "client", lambda: nobody)


def _page(client: Client, address: str = QUEUES, language: str = "en", **query: str) -> str:
    answer = client.get(address, query, headers={"accept-language": language})
    assert answer.status_code == 200
    return answer.content.decode()


def test_figures_of_the_chosen_domain(admin_client: Client, broker: Broker) -> None:
    broker.limit("one", 4, 1)
    for number in range(1_235):
        broker.put(f"a{number}", "one")
    broker.put("b", "two")
    broker.put("c", "three", domain="tool")
    assert broker.lease("one", 0) == "a0"
    page = _page(admin_client)
    assert "1,235" in page
    assert page.index(">one</a>") < page.index(">two</a>")
    assert page.count("at its cap") == 1
    assert 'data-label="Weight">4<' in page
    assert ">three</a>" not in page
    tool = _page(admin_client, domain="tool")
    assert ">three</a>" in tool
    assert ">one</a>" not in tool
    assert 'data-label="Cap">–<' in tool


def test_a_domain_that_is_none_shows_the_first(admin_client: Client, broker: Broker) -> None:
    broker.put("a", "one")
    assert ">one</a>" in _page(admin_client, domain='"><script>')


def test_the_fragment_is_the_pages_part_and_nothing_else(admin_client: Client, broker: Broker) -> None:
    broker.put("a", "one")
    fragment = _page(admin_client, FIGURES, domain="agent")
    assert ">one</a>" in fragment
    assert "<html" not in fragment
    page = _page(admin_client)
    assert f'data-refresh="{FIGURES}?domain=agent"' in page
    assert "core/refresh.js" in page
    never_stored = admin_client.get(FIGURES)["Cache-Control"]
    assert "no-store" in never_stored


def test_a_tenant_leads_to_its_tasks(admin_client: Client, broker: Broker, tenant: Tenant) -> None:
    broker.put("a", tenant.pk)
    broker.put("p", "_system")
    page = _page(admin_client)
    link = f"{reverse('admin:core_task_changelist')}?tenant__id__exact={tenant.pk}&amp;domain=agent"
    assert link in page
    assert "tenant__id__exact=_system" not in page
    assert admin_client.get(link.replace("&amp;", "&")).status_code == 200


def test_more_tenants_than_are_shown(
    admin_client: Client, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "TENANTS", 3)
    for number in range(5):
        broker.put(f"a{number}", f"t{number}")
    page = _page(admin_client)
    assert page.count('scope="row"') == 3
    assert "The first 3 of 5 tenants with waiting messages." in page


def test_a_look_costs_the_database_only_who_asks(admin_client: Client, broker: Broker) -> None:
    broker.put("a", "one")
    with CaptureQueriesContext(connection) as queries:
        _page(admin_client, FIGURES)
    assert len(queries) <= 2


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("address", PAGES)
def test_a_broker_that_is_away_is_told(admin_client: Client, address: str) -> None:
    assert "Valkey does not answer" in _page(admin_client, address)


def test_dead_letters_are_escaped_and_shortened(admin_client: Client, broker: Broker) -> None:
    attack = "<script>alert(1)</script>"
    for entry in (
        f"agent:one:execute:high|rejected|{'x' * 5_000}",
        f"{attack}|{attack}|{attack}",
        "no bars at all",
    ):
        broker.client.lpush(f"{broker.root}:dead", entry)
    page = _page(admin_client, DEAD)
    assert "3 in all" in page
    assert attack not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3
    assert "The worker knows no such task, or its task refused it." in page
    assert "x" * 399 in page
    assert "x" * 401 not in page
    assert f'href="{DEAD}"' in _page(admin_client, FIGURES)


@pytest.mark.django_db
@pytest.mark.parametrize("address", PAGES)
def test_who_may_look(client: Client, broker: Broker, address: str) -> None:
    broker.put("a", "secret-tenant")
    assert "/login/" in client.get(address)["location"]
    client.force_login(User.objects.create_user("guest"))
    assert "/login/" in client.get(address)["location"]

    clerk = User.objects.create_user("clerk", is_staff=True)
    client.force_login(clerk)
    assert client.get(address).status_code == 403
    assert QUEUES not in client.get(reverse("admin:index")).content.decode()

    client.force_login(make_person((make_tenant("mine"), Role.VIEWER)))
    page = client.get(address)
    assert page.status_code == (403 if address == DEAD else 200)
    assert "secret-tenant" not in page.content.decode()
    assert QUEUES in client.get(reverse("admin:index")).content.decode()


@pytest.mark.django_db
def test_people_see_the_queues_of_their_tenants(client: Client, broker: Broker) -> None:
    client.force_login(make_person((make_tenant("mine"), Role.VIEWER)))
    for tenant in ("mine", "mine", "secret-tenant"):
        broker.put("a", tenant)
    page = _page(client)
    assert "secret-tenant" not in page
    assert "mine" in page
    assert "<strong>2</strong>" in page
    assert "<strong>3</strong>" not in page


def test_it_speaks_spanish(admin_client: Client, broker: Broker) -> None:
    broker.put("a", "one")
    for text in ("Colas", "Mensajes muertos", "Espera más larga", "inquilinos con trabajo", "Peso"):
        assert text in _page(admin_client, language="es")
    assert "No hay ninguno." in _page(admin_client, DEAD, language="es")


def test_numbers_are_grouped_as_the_language_does(admin_client: Client, broker: Broker) -> None:
    for number in range(1_000):
        broker.put(f"a{number}", "one")
    assert "1\xa0000" in _page(admin_client, FIGURES, language="es")
