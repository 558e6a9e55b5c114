"""The verb that tells what stands in the outbox."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from core.actions.base import Action
from core.queues.names import HIGH


class NoticeRelayAction(Action[None]):
    """Tell what happened to one thing of the tenant's: to its dashboards, and to whoever else subscribes."""

    verb = "notice.relay"
    queue = ("orchestrator", "notice_relay")
    default_priority = HIGH

    subject: Annotated[str, StringConstraints(min_length=1, max_length=64)]
