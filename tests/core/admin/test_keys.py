"""API keys in the console."""

from __future__ import annotations

import re

from django.test import Client
from django.urls import reverse

from core.models import ApiKey, Tenant
from tests.factories import make_key

KEY = re.compile(r"nbk_[a-z0-9]{12}_[A-Za-z0-9_-]{43}")
ADD = reverse("admin:core_apikey_add")


def test_a_new_key_is_shown_once_and_stored_hashed(admin_client: Client, tenant: Tenant) -> None:
    body = {"tenant": tenant.pk, "name": "Their shop", "scopes": ["agents:read", "usage:read"]}
    page = admin_client.post(ADD, body, follow=True).content.decode()
    [text] = set(KEY.findall(page))
    key = ApiKey.verify(text)
    assert key is not None
    assert (key.tenant_id, key.name, key.scopes) == (tenant.pk, "Their shop", ["agents:read", "usage:read"])
    assert text.rpartition("_")[2] not in str(ApiKey.unscoped.filter(pk=key.pk).values().get())
    for address in (
        reverse("admin:core_apikey_changelist"),
        reverse("admin:core_apikey_change", args=[key.pk]),
    ):
        again = admin_client.get(address).content.decode()
        assert "Their shop" in again
        assert not KEY.findall(again)


def test_a_key_needs_scopes_that_exist(admin_client: Client, tenant: Tenant) -> None:
    for scopes in ([], ["everything:write"]):
        body = {"tenant": tenant.pk, "name": "Their shop", "scopes": scopes}
        assert admin_client.post(ADD, body).status_code == 200
    assert not ApiKey.unscoped.filter(tenant=tenant).exists()


def test_a_key_is_revoked_and_never_edited(admin_client: Client, tenant: Tenant) -> None:
    key, text = make_key(tenant)
    change = reverse("admin:core_apikey_change", args=[key.pk])
    assert admin_client.post(change, {"name": "x", "scopes": ["agents:read"]}).status_code == 403
    revoke = reverse("admin:core_apikey_revoke", args=[key.pk])
    assert revoke in admin_client.get(change).content.decode()

    assert admin_client.get(revoke).status_code == 405
    assert ApiKey.verify(text) is not None
    page = admin_client.post(revoke, follow=True).content.decode()
    assert revoke not in page
    assert ApiKey.verify(text) is None

    key.refresh_from_db()
    first = key.revoked_at
    admin_client.post(revoke)
    key.refresh_from_db()
    assert key.revoked_at == first
