"""Sending to open sockets beside the session's log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import orjson
import redis
from channels.layers import get_channel_layer

from core import aio
from core.events.base import Event, with_seq
from core.events.groups import session_name, tenant_name, updates_name

logger = logging.getLogger(__name__)

TELLING_SECONDS = 1.0  # longer a slow Valkey may not hold up what follows


async def publish_to_tenant(event: Event) -> None:
    """Tell every socket that a tenant has open now. Not kept: who is not there does not hear it."""
    await get_channel_layer().group_send(
        tenant_name(event.tenant_id),
        {
            "type": "session.event",  # the consumer's method: Channels turns the dot into an underscore
            "tenant_id": event.tenant_id,
            "session_id": None,
            "seq": None,
            "text": with_seq(event.body(), None),
        },
    )


async def publish_update(tenant_id: str, body: dict[str, Any]) -> None:
    """Tell a tenant's dashboards of an event. Not kept: who is not there does not hear it."""
    message = {"channel": f"tenant:{tenant_id}", "event": body["event"], "data": body["data"]}
    if "alias_of" in body:
        message["alias_of"] = body["alias_of"]
    await get_channel_layer().group_send(
        updates_name(tenant_id),
        {"type": "tenant.update", "tenant_id": tenant_id, "text": orjson.dumps(message).decode()},
    )


def tell_access(tenant_id: str, session_id: str | None = None) -> None:
    """Have the open sockets of a session, or of a tenant, ask anew whether they may listen. For threads.

    A hint: whoever misses it asks by itself within a few seconds.
    """
    name = tenant_name(tenant_id) if session_id is None else session_name(tenant_id, session_id)
    # Shaped as a hint of the log: who listens for those only takes it for one that it has had.
    message = {
        "type": "session.access",
        "tenant_id": tenant_id,
        "session_id": session_id,
        "seq": 0,
        "text": "",
    }

    async def tell() -> None:
        await asyncio.wait_for(get_channel_layer().group_send(name, message), TELLING_SECONDS)

    try:
        aio.run(tell())
    except (redis.RedisError, OSError, TimeoutError):
        logger.warning("tenant %s: its sockets are not asked for their right now: Valkey is away", tenant_id)


def tell_deleted(tenant_id: str, session_ids: Sequence[str]) -> None:
    """Have the open sockets of sessions close: the sessions are deleted. For threads.

    A hint: whoever misses it hears nothing any more, and is refused with the next message.
    """
    layer = get_channel_layer()

    async def tell() -> None:
        for session_id in session_ids:
            # Shaped as a hint of the log, as above.
            message = {"type": "session.deleted", "tenant_id": tenant_id, "session_id": session_id}
            await layer.group_send(session_name(tenant_id, session_id), {**message, "seq": 0, "text": ""})

    try:
        aio.run(asyncio.wait_for(tell(), TELLING_SECONDS))
    except (redis.RedisError, OSError, TimeoutError):
        logger.warning("tenant %s: sockets of deleted sessions stay open: Valkey is away", tenant_id)
