"""The console's door: wrong passwords shut it."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

RIGHT = "a right and long password"


@pytest.fixture
def person(db: None) -> User:
    return User.objects.create_superuser("somebody", password=RIGHT)


def knock(client: Client, password: str, **more: Any) -> int:
    fields = {"username": "somebody", "password": password}
    return client.post("/admin/login/?next=/admin/", fields, **more).status_code


def test_the_fifth_wrong_password_shuts_it(client: Client, person: User) -> None:
    assert [knock(client, "wrong") for _ in range(6)] == [200, 200, 200, 200, 429, 429]
    shut = client.post("/admin/login/", {"username": "somebody", "password": RIGHT})
    assert shut.status_code == 429 and shut.headers["Retry-After"] == "900"
    assert "Try again in 15 minutes" in shut.content.decode()
    assert "_auth_user_id" not in client.session


def test_the_logins_own_address_leads_to_the_console(client: Client, person: User) -> None:
    answer = client.post("/admin/login/", {"username": "somebody", "password": RIGHT})
    assert answer.status_code == 302 and answer.headers["Location"] == "/admin/"


def test_in_spanish(client: Client, person: User) -> None:
    for _ in range(5):
        knock(client, "wrong")
    answer = client.post("/admin/login/", {"username": "somebody"}, headers={"Accept-Language": "es"})
    fields = {"username": "somebody", "password": "wrong"}
    answer = client.post("/admin/login/", fields, headers={"Accept-Language": "es"})
    assert "15 minutos" in answer.content.decode()


def test_it_opens_again(client: Client, person: User) -> None:
    for _ in range(5):
        knock(client, "wrong")
    with time_machine.travel(timezone.now() + datetime.timedelta(minutes=16), tick=True):
        assert knock(client, RIGHT) == 302


def test_the_right_password_forgets_the_wrong_ones(client: Client, person: User) -> None:
    for _ in range(2):
        assert [knock(client, "wrong") for _ in range(4)] == [200] * 4
        assert knock(client, RIGHT) == 302
        client.logout()


def test_it_is_shut_for_that_address_only(client: Client, person: User) -> None:
    for _ in range(5):
        knock(client, "wrong")
    assert knock(client, RIGHT, REMOTE_ADDR="198.51.100.1") == 302


def test_another_address_of_the_same_visitors_is_no_other(client: Client, person: User) -> None:
    """Neither what he says of himself, nor one of the many that come with IPv6."""
    for number in range(5):
        told = {"X-Forwarded-For": f"203.0.113.{number}"}
        knock(client, "wrong", REMOTE_ADDR=f"2001:db8:1:2::{number}", headers=told)
    assert knock(client, RIGHT, REMOTE_ADDR="2001:db8:1:2:ffff::1") == 429
    assert knock(client, RIGHT, REMOTE_ADDR="2001:db8:1:3::1") == 302


def test_no_form_of_the_console_goes_without_its_token(person: User) -> None:
    client = Client(enforce_csrf_checks=True)
    assert knock(client, RIGHT) == 403
    client.force_login(person)
    assert client.post("/admin/core/tenant/add/", {"id": "x"}).status_code == 403
