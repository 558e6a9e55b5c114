"""Sending to open sockets beside the session's log."""

from __future__ import annotations

from channels.layers import get_channel_layer

from core.events.base import Event, with_seq
from core.events.groups import tenant_name


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
