"""Sending to open sockets beside the session's log."""

from __future__ import annotations

from typing import Any

import orjson
from channels.layers import get_channel_layer

from core.events.base import Event, with_seq
from core.events.groups import tenant_name, updates_name


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
