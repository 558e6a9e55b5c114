"""Secrets of tenants at rest: encrypted with ENCRYPTION_KEYS, readable by this platform only.

The first key encrypts, all of them decrypt. To renew a key, put the new one in front, and take the old
one away when nothing is left that it has encrypted.
"""

from __future__ import annotations

import functools

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings


class SecretUnreadable(RuntimeError):
    """None of ENCRYPTION_KEYS opens it: a key was taken away too early."""


@functools.lru_cache(maxsize=1)
def _box(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])


def encrypt(text: str) -> str:
    """`text` as a token of ASCII characters, another one each time."""
    return _box(tuple(settings.ENCRYPTION_KEYS)).encrypt(text.encode()).decode()


def decrypt(token: str) -> str:
    """What `encrypt` was given. Raises SecretUnreadable."""
    box = _box(tuple(settings.ENCRYPTION_KEYS))
    try:
        return box.decrypt(token).decode()
    except (InvalidToken, ValueError):
        raise SecretUnreadable("no key of ENCRYPTION_KEYS opens this secret") from None
