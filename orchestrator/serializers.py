"""Shapes of sessions over HTTP."""

from __future__ import annotations

import datetime
import uuid

from pydantic import BaseModel


class MessageItem(BaseModel):
    """What was said; `finish_reason` tells of an answer that was cut short."""

    id: int
    role: str
    text: str
    task_id: uuid.UUID | None
    finish_reason: str
    created_at: datetime.datetime


class MessageList(BaseModel):
    """A page of messages, oldest first; `next` is the cursor of the following one, or null."""

    items: list[MessageItem]
    next: str | None
