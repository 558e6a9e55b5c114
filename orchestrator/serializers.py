"""Shapes of chat and sessions over HTTP."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from pydantic import BaseModel

from conversations.actions import SessionResource
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
    """What was said; `finish_reason` tells of an answer that was cut: `length`, `budget`, `cancelled`, …

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


class NewSession(SessionResource):
    """`resume_token` opens all that will be said in it."""

    resume_token: str


class SessionList(BaseModel):
    """A page of sessions, those that began last first; `next` is the cursor of the following one, or null."""

    items: list[SessionResource]
    next: str | None


class WebhookList(BaseModel):
    """A page of webhooks, oldest first; `next` is the cursor of the following one, or null."""

    items: list[WebhookResource]
    next: str | None


class DeliveryList(BaseModel):
    """A page of deliveries, newest first; `next` is the cursor of the following one, or null."""

    items: list[DeliveryResource]
    next: str | None


class Choice(BaseModel):
    """`finish_reason`: `stop`, `length`, `content_filter`, or `cancelled`."""

    index: int
    message: dict[str, Any]
    logprobs: None
    finish_reason: str


class ChatCompletion(BaseModel):
    """An answer as the OpenAI API gives it; `id` is `chatcmpl-` and the task's id."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: dict[str, Any]


class Model(BaseModel):
    """An agent as a model; `owned_by` is its tenant."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All of them at once: official clients do not turn pages here."""

    object: str
    data: list[Model]
