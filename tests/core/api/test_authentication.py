"""Tenant API keys as bearer tokens."""

from __future__ import annotations

import hmac
import re
from typing import Any

import pytest
from django.db.models.functions import Now
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from core.api.authentication import TenantKeyAuthentication
from core.errors import AuthenticationRequired
from core.models import ApiKey, Tenant
from tests.factories import make_key


def authenticate(header: str | None) -> tuple[None, ApiKey] | None:
    headers = {} if header is None else {"HTTP_AUTHORIZATION": header}
    request = Request(APIRequestFactory().get("/", **headers))
    return TenantKeyAuthentication().authenticate(request)


def test_a_key_verifies_and_tells_its_tenant(tenant: Tenant) -> None:
    key, text = make_key(tenant)
    assert re.fullmatch(r"nbk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", text)
    assert ApiKey.verify(text) == key
    found = authenticate(f"Bearer {text}")
    assert found is not None
    assert found[1].tenant_id == tenant.pk


def test_the_secret_is_nowhere_in_the_row(tenant: Tenant) -> None:
    key, text = make_key(tenant)
    row = ApiKey.unscoped.filter(pk=key.pk).values().get()
    assert text.split("_", 2)[2] not in str(row)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_written_as_one_likes(tenant: Tenant, scheme: str) -> None:
    _, text = make_key(tenant)
    assert authenticate(f"{scheme} {text}") is not None


def test_without_a_header_nobody_is_authenticated(db: None) -> None:
    assert authenticate(None) is None
    assert authenticate("") is None


def test_a_revoked_key_is_refused(tenant: Tenant) -> None:
    key, text = make_key(tenant)
    ApiKey.unscoped.filter(pk=key.pk).update(revoked_at=Now())
    assert ApiKey.verify(text) is None
    with pytest.raises(AuthenticationRequired):
        authenticate(f"Bearer {text}")


def test_a_known_prefix_with_another_secret_is_refused_after_a_constant_time_comparison(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def spy(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr("core.models.access.hmac.compare_digest", spy)
    key, text = make_key(tenant)
    _, other = make_key(tenant)
    mixed = text[:17] + other[17:]
    assert ApiKey.verify(mixed) is None
    assert [one for one, _ in compared] == [key.digest]
    assert all(len(one) == len(other) == 64 for one, other in compared)


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Token {key}",
        "{key}",
        "Bearer {key} more",
        "Bearer {key}x",
        "Bearer x{key}",
        "Bearer {key}\\n",
        "Bearer nbk_",
        "Bearer nbk_000000000000_" + "A" * 43,
        "Bearer nbk_é",
        "Bearer " + "x" * 10_000,
        "Bearer \x00",
    ],
    ids=repr,
)
def test_whatever_else_stands_there_is_refused(tenant: Tenant, header: str) -> None:
    _, text = make_key(tenant)
    with pytest.raises(AuthenticationRequired):
        authenticate(header.replace("{key}", text))


@hypothesis_settings(max_examples=60)
@given(st.data())
def test_a_key_with_any_character_changed_is_refused(tenant: Tenant, data: st.DataObject) -> None:
    _, text = make_key(tenant)
    position = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters().filter(lambda one: one != text[position]))
    assert ApiKey.verify(text[:position] + character + text[position + 1 :]) is None
    assert ApiKey.verify(text + character) is None
    assert ApiKey.verify(text[:position]) is None
