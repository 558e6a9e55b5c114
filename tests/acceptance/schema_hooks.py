"""What schemathesis does beside asking; loaded by its own process (schemathesis.toml)."""

from __future__ import annotations

import os
from typing import Any

import redis
import schemathesis

REFUSED_TOKENS = "nooble:rates:{tokens/*"
valkey = redis.Redis.from_url(os.environ["VALKEY_URL"])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Tokens that do not verify are shown all the time, from one address: nobody counts them."""
    if counted := list(valkey.scan_iter(REFUSED_TOKENS, count=5_000)):
        valkey.delete(*counted)
