"""Secrets at rest."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.fernet import Fernet

from core.secrets import SecretUnreadable, decrypt, encrypt
from nooble.env import Environment


def test_a_secret_comes_back_and_is_not_in_its_token() -> None:
    token = encrypt("whsec_ñ")
    assert decrypt(token) == "whsec_ñ"
    assert token.isascii() and "whsec" not in token
    assert encrypt("whsec_ñ") != token


def test_keys_are_renewed_in_order(settings: Any) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.ENCRYPTION_KEYS = [old]
    token = encrypt("a secret")
    settings.ENCRYPTION_KEYS = [new, old]
    assert decrypt(token) == "a secret"
    renewed = encrypt("a secret")
    settings.ENCRYPTION_KEYS = [new]
    assert decrypt(renewed) == "a secret"
    with pytest.raises(SecretUnreadable):
        decrypt(token)


@pytest.mark.parametrize("text", ["", "x", "gAAAAAB", "ñ"])
def test_what_is_no_token_is_unreadable(text: str) -> None:
    with pytest.raises(SecretUnreadable):
        decrypt(text)


@pytest.mark.parametrize("text", ["short", "A" * 44, "A" * 43 + "=,oops", "not base64 at all!"])
def test_a_bad_key_is_named_at_the_start(text: str) -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        Environment(encryption_keys=text)
