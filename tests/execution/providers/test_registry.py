"""Providers by name."""

from __future__ import annotations

import pytest

from execution.messages import ChatMessage, Finished, ModelRequest
from execution.providers import registry
from execution.providers.base import ProviderNotConfigured
from execution.providers.openai_wire import shared_session
from execution.providers.registry import PROVIDERS, VENDOR_BASE_URLS, Credentials, provider_for
from tests.execution.conftest import Fake

LOCAL = "http://127.0.0.1:11434/v1"


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_name_has_a_provider(name: str) -> None:
    assert provider_for(name, Credentials(api_key="k")).name == name


def test_the_scripted_one_needs_nothing() -> None:
    assert provider_for("scripted", Credentials()).name == "scripted"


@pytest.mark.parametrize("name", VENDOR_BASE_URLS)
@pytest.mark.parametrize("key", [None, "", "  "])
def test_the_vendors_address_needs_a_key(name: str, key: str | None) -> None:
    for base_url in (None, "", VENDOR_BASE_URLS[name], VENDOR_BASE_URLS[name] + "/"):
        with pytest.raises(ProviderNotConfigured):
            provider_for(name, Credentials(base_url, key))


@pytest.mark.parametrize("name", VENDOR_BASE_URLS)
def test_another_address_needs_none(name: str) -> None:
    assert provider_for(name, Credentials(LOCAL)).name == name


@pytest.mark.parametrize("name", ["", "OpenAI", "anthropic", "../openai"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ProviderNotConfigured):
        provider_for(name, Credentials(LOCAL, "k"))


@pytest.mark.parametrize("base_url", ["localhost:11434", "ftp://host/v1", "http://[::"])
def test_an_address_that_is_none(base_url: str) -> None:
    with pytest.raises(ProviderNotConfigured):
        provider_for("openai", Credentials(base_url, "k"))


def test_credentials_do_not_print_the_key() -> None:
    assert "sk-secret" not in repr(Credentials(LOCAL, "sk-secret"))


async def test_a_key_from_a_file_may_end_with_a_newline(fake: Fake) -> None:
    provider = provider_for("openai", Credentials(fake.base_url, "key\n"))
    events = [event async for event in provider.stream(ModelRequest("fake", (ChatMessage("user", "Hi"),)))]
    assert isinstance(events[-1], Finished)
    assert (await fake.ended("fake"))["authorization"] == "Bearer key"


async def test_a_server_of_ones_own_is_asked_with_max_tokens(fake: Fake) -> None:
    provider = provider_for("groq", Credentials(fake.base_url))
    request = ModelRequest("fake", (ChatMessage("user", "Hi"),), max_output_tokens=3)
    events = [event async for event in provider.stream(request)]
    assert len(events) == 4
    assert (await fake.ended("fake"))["fields"]["max_tokens"] == 3


async def test_one_session_serves_the_loop_until_it_is_closed() -> None:
    session = shared_session()
    assert shared_session() is session
    await registry.close()
    assert session.closed
    assert shared_session() is not session
    await registry.close()
    await registry.close()
