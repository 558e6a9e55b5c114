"""Identifiers: their shapes, and how new ones are made."""

from __future__ import annotations

import os
import re
import secrets
import time
import uuid

SLUG_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$"  # of tenants and agents
SESSION_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
WORD_PATTERN = r"^[a-z][a-z0-9_]{0,31}$"  # of domains and actions

SYSTEM_TENANT = "_system"  # work of the platform itself; no tenant can be called so

_slug = re.compile(SLUG_PATTERN)
_session = re.compile(SESSION_PATTERN)


def is_slug(text: str) -> bool:
    return _slug.fullmatch(text) is not None


def is_session_id(text: str) -> bool:
    return _session.fullmatch(text) is not None


def new_session_id() -> str:
    """A session id with 128 random bits."""
    return secrets.token_urlsafe(16)


def uuid7() -> uuid.UUID:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then 74 random bits and no counter.

    No counter, because a task's id is the capability to read and to cancel it.
    """
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    number = (number & ~(0xF << 76)) | (0x7 << 76)
    number = (number & ~(0x3 << 62)) | (0x2 << 62)
    return uuid.UUID(int=number)


def parse_uuid(text: str) -> uuid.UUID | None:
    """The UUID that `text` spells, or None."""
    try:
        return uuid.UUID(text)
    except (ValueError, AttributeError, TypeError):
        return None
