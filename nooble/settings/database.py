"""PostgreSQL, through psycopg's pool."""

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from core.postgres.base import PATIENCE
from nooble.embedded import resolve
from nooble.env import environment
from nooble.settings.roles import role

_services = resolve(environment())
REDIS_URL = _services.redis_url


def parse_database_url(url: str) -> dict[str, Any]:
    """Django's connection settings of a `postgresql://` URL; a `host` in the query is a socket directory."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    return {
        "ENGINE": "core.postgres",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": options.pop("host", None) or unquote(parts.hostname or ""),
        "PORT": options.pop("port", None) or (parts.port or ""),
        "OPTIONS": options,
    }


DATABASES = {"default": parse_database_url(_services.database_url)}
if role() in ("web", "worker"):
    DATABASES["default"]["OPTIONS"]["pool"] = {
        "min_size": 2,
        "max_size": 32 if role() == "web" else 64,
        "timeout": PATIENCE,
        # Else a pool that lost its connections tries again after pauses that double for five minutes:
        # the database would be back long before this process. Now who asks again makes it try again.
        "reconnect_timeout": PATIENCE,
    }
    DATABASES["default"]["OPTIONS"]["connect_timeout"] = int(PATIENCE)
