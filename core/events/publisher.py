"""Sending: into the log, then to the open sockets of the session."""

from __future__ import annotations

import logging

import redis
from channels.layers import get_channel_layer

from core.events.base import Event, with_seq
from core.events.groups import session_name, tenant_name
from core.events.log import append

logger = logging.getLogger(__name__)

# The consumer's method names: Channels turns the dot into an underscore.
EVENT_TYPE = "session.event"


async def publish(event: Event, attempt: int | None = None) -> int | None:
    """Append to the session's log and tell its sockets; the seq, or None when the log refused it.

    The log is the truth. A hint lost here leaves a gap that the sockets fill from the log. Raises
    redis.RedisError when the append failed; to publish the same event again is safe.
    """
    if event.session_id is None:
        raise ValueError("an event of no session has no log")
    name, body = session_name(event.tenant_id, event.session_id), event.body()
    seq = await append(name, event, body, attempt)
    if seq is not None:
        hint = {
            "type": EVENT_TYPE,
            "tenant_id": event.tenant_id,
            "session_id": event.session_id,
            "seq": seq,
            "text": with_seq(body, seq),
        }
        try:
            await get_channel_layer().group_send(name, hint)
        except (redis.RedisError, OSError) as error:
            logger.warning("a hint was lost: %s", error)
    return seq


async def publish_to_tenant(event: Event) -> None:
    """Tell every socket that a tenant has open now. Not kept: who is not there does not hear it."""
    await get_channel_layer().group_send(
        tenant_name(event.tenant_id),
        {
            "type": EVENT_TYPE,
            "tenant_id": event.tenant_id,
            "session_id": None,
            "seq": None,
            "text": with_seq(event.body(), None),
        },
    )
