"""Providers by name, built from plain data."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from types import MappingProxyType

from yarl import URL

from core.outbound import Allow
from execution.providers.base import Provider, ProviderNotConfigured
from execution.providers.openai_wire import (
    OpenAIWire,
    OutputLimitField,
    checked_session,
    close_shared_session,
)
from execution.providers.scripted import Scripted

# The vendors' own servers; these need a key.
VENDOR_BASE_URLS = MappingProxyType(
    {"openai": "https://api.openai.com/v1", "groq": "https://api.groq.com/openai/v1"}
)
PROVIDERS = (*VENDOR_BASE_URLS, "scripted")

# Hosts (or their parents) whose newer models refuse `max_tokens`; see OpenAIWire.
_HOSTS_OF_NEW_LIMIT = ("api.openai.com", "api.groq.com", "openai.azure.com", "services.ai.azure.com")


@dataclass(frozen=True)
class Credentials:
    """Where a provider is reached and with which key; None means the vendor's address, or no key."""

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)


def provider_for(name: str, credentials: Credentials) -> Provider:
    """The provider of that name. Raises ProviderNotConfigured for unknown names and missing keys.

    A key is required only at the vendor's own address: a server of one's own may need none.
    """
    if name == "scripted":
        return Scripted()
    vendor = VENDOR_BASE_URLS.get(name)
    if vendor is None:
        raise ProviderNotConfigured(f"no provider is called {name!r}")
    base_url, api_key = _reached(name, vendor, credentials)
    return OpenAIWire(name, base_url, api_key, output_limit=_limit_field(base_url))


def tenants_provider(name: str, credentials: Credentials, allow: Allow) -> Provider:
    """A provider that a tenant registered, with its own credentials. Raises ProviderNotConfigured.

    It connects to public addresses only, and to the networks in `allow`.
    """
    base_url, api_key = _reached(name, VENDOR_BASE_URLS.get(name, ""), credentials)
    session = functools.partial(checked_session, allow)
    return OpenAIWire(name, base_url, api_key, output_limit=_limit_field(base_url), session=session)


def _reached(name: str, vendor: str, credentials: Credentials) -> tuple[str, str | None]:
    """Address and key."""
    base_url = (credentials.base_url or vendor).strip()
    api_key = (credentials.api_key or "").strip() or None
    if api_key is None and base_url.rstrip("/") == vendor:
        raise ProviderNotConfigured(f"{name} has no API key")
    return base_url, api_key


async def close() -> None:
    """Close the connections that providers hold on the running loop."""
    await close_shared_session()


def _limit_field(base_url: str) -> OutputLimitField:
    try:
        host = URL(base_url).host or ""
    except ValueError:
        host = ""  # the provider itself says what is wrong with it
    new = any(host == known or host.endswith(f".{known}") for known in _HOSTS_OF_NEW_LIMIT)
    return "max_completion_tokens" if new else "max_tokens"
