"""Whose key a run uses: the tenant's own, else the operator's.

The two never mix. A tenant's key goes to the tenant's address, checked at the connect, or to the
vendor's. The operator's key goes to the operator's address from the environment, and nowhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from django.conf import settings

from core.cache import TimedCache
from core.models import ProviderCredential
from core.secrets import SecretUnreadable, decrypt
from core.selectors import tenant_limits
from core.tenancy import tenant_scope
from execution.providers.base import Provider, ProviderNotConfigured
from execution.providers.registry import Credentials, provider_for, tenants_provider


@dataclass(frozen=True, slots=True)
class _Own:
    """A credential as its row has it."""

    base_url: str
    encrypted_key: str = field(repr=False)


# A change is in force within a second in every process. A tenant without any is remembered, too.
_own: TimedCache[str, Mapping[str, _Own]] = TimedCache(seconds=1.0)


def provider_maker(tenant_id: str, name: str) -> Callable[[], Provider]:
    """What makes the provider of that name for the tenant, later and without a query.

    It may raise ProviderNotConfigured.
    """
    own = (_own.get(tenant_id, _load) or {}).get(name)
    if own is not None:
        return functools.partial(_tenants, name, own)
    return functools.partial(_operators, name, tenant_limits(tenant_id).uses_environment_keys)


def provider_of(credential: ProviderCredential) -> Provider:
    """The provider that the row describes. Raises ProviderNotConfigured."""
    return _tenants(credential.name, _Own(credential.base_url, credential.encrypted_key))


def _load(tenant_id: str) -> Mapping[str, _Own]:
    with tenant_scope(tenant_id):
        rows = list(ProviderCredential.objects.values_list("name", "base_url", "encrypted_key"))
    return {name: _Own(base_url, key) for name, base_url, key in rows}


def _tenants(name: str, own: _Own) -> Provider:
    try:
        key = decrypt(own.encrypted_key) if own.encrypted_key else None
    except SecretUnreadable as error:
        raise ProviderNotConfigured(str(error)) from None
    return tenants_provider(name, Credentials(own.base_url or None, key), settings.OUTBOUND_ALLOW)


def _operators(name: str, allowed: bool) -> Provider:
    base_url, key = settings.PROVIDERS.get(name, (None, None))
    if name != "scripted" and not allowed:
        raise ProviderNotConfigured("the tier may not use the operator's keys")
    return provider_for(name, Credentials(base_url, key))
