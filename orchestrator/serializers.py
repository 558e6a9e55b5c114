"""Shapes of chat and sessions over HTTP."""

from __future__ import annotations

import datetime
import uuid

from pydantic import BaseModel

from core.actions.base import ActionResult
from orchestrator.actions import ChatMessageSent, DeliveryResource, TaskCancelled, TaskState, WebhookResource


# What an ActionResult holds, endpoint by endpoint: for the schema.
class ChatMessageAnswer(ActionResult):
    result: ChatMessageSent | None = None  # type: ignore[assignment]


class TaskStateAnswer(ActionResult):
    result: TaskState | None = None  # type: ignore[assignment]


class TaskCancelledAnswer(ActionResult):
    result: TaskCancelled | None = None  # type: ignore[assignment]


class MessageItem(BaseModel):
    """What was said; `finish_reason` tells of an answer that was cut short.

    `task_status` is where the task of the question or answer stands now: one that failed, or was
    cancelled, may have no answer.
    """

    id: int
    role: str
    text: str
    task_id: uuid.UUID | None
    task_status: str | None
    finish_reason: str
    created_at: datetime.datetime


class MessageList(BaseModel):
    """A page of messages, oldest first; `next` is the cursor of the following one, or null."""

    items: list[MessageItem]
    next: str | None


class WebhookList(BaseModel):
    """A page of webhooks, oldest first; `next` is the cursor of the following one, or null."""

    items: list[WebhookResource]
    next: str | None


class DeliveryList(BaseModel):
    """A page of deliveries, newest first; `next` is the cursor of the following one, or null."""

    items: list[DeliveryResource]
    next: str | None
