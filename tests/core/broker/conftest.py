"""A database of Valkey that no worker consumes."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis
from django.conf import settings

OTHER = "13"


@pytest.fixture
def other_database() -> Iterator[str]:
    """The URL of an empty database beside the platform's."""
    parts = urlsplit(settings.REDIS_URL)
    unix = parts.scheme == "unix"
    url = f"unix://{parts.path}?db={OTHER}" if unix else parts._replace(path=f"/{OTHER}").geturl()
    client = redis.Redis.from_url(url)
    assert client.dbsize() == 0
    yield url
    client.flushdb()
    client.close()
