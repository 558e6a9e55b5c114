"""What is raised while a service that we stand on is away: it passes, and nobody's request is at fault."""

from __future__ import annotations

import redis
from django.db import InterfaceError, OperationalError

DATABASE_AWAY = (OperationalError, InterfaceError)
SERVICE_AWAY = (OperationalError, redis.RedisError, OSError)  # the database or Valkey
