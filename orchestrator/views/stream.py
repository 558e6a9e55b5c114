"""The events of one task as Server-Sent Events, for clients without a WebSocket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from conversations.selectors import question_seq
from core.api.late import EventStreamResponse
from core.api.schema import EVENT
from core.api.views import ApiView
from core.errors import ValidationFailed
from core.events import log
from core.events.groups import log_name
from core.ids import SLUG_PATTERN
from core.ratelimits import request_of
from core.selectors import task_origin
from orchestrator.authentication import KEY_OR_TOKEN
from orchestrator.following import END, Follower, Told
from orchestrator.selectors import chat_task, task_tenant

COMMENT = b":\n\n"
SEQ = {"type": "integer", "minimum": 0, "maximum": END}


class TaskStreamView(ApiView):
    authentication_classes = KEY_OR_TOKEN
    callers = "who has the task's id"
    http_method_names = ["get", "options"]

    @extend_schema(
        operation_id="chat_stream",
        auth=[],
        parameters=[
            OpenApiParameter(
                "tenant_id",
                str,
                pattern=SLUG_PATTERN,
                description="The task's tenant; another one answers 404",
            ),
            OpenApiParameter("after", SEQ, description="The seq of the last event that the client has"),
            OpenApiParameter(
                "Last-Event-ID", SEQ, OpenApiParameter.HEADER, description="Like `after`, and stronger"
            ),
        ],
        responses={(200, "text/event-stream"): EVENT, 204: None},
    )
    def get(self, request: Request, task_id: str) -> HttpResponseBase:
        """The events of a task as Server-Sent Events, from its first to its last.

        `data` is one event as a WebSocket tells it, `id` its seq. Where the log no longer reaches back, a
        `snapshot` comes first. 204: the client has had the last event.
        """
        after = _seq(request, "after", request.query_params.get("after"))
        if (header := request.headers.get("Last-Event-ID")) is not None:
            after = _seq(request, "Last-Event-ID", header)
        with request_of(task_tenant(task_id, request.query_params.get("tenant_id"))):
            task = chat_task(task_id)
            # What came before the question is of other tasks.
            first = question_seq(task_origin(task)) if task.session_id else 0
        end = log.end_of_sync(log_name(task.tenant_id, task.session_id, task.pk), task.pk)
        if (end is not None and after >= end) or (task.is_final and after >= END):
            return HttpResponse(status=204)
        follower = Follower(task.tenant_id, task.session_id, task.pk, max(after, first), task.is_final)
        return EventStreamResponse(frames(follower))

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        """Whoever accepts the stream gets its errors, too."""
        negotiated: tuple[BaseRenderer, str] = super().perform_content_negotiation(request, force=True)
        return negotiated


def _seq(request: Request, name: str, text: str | None) -> int:
    if text is None:
        return 0
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(END)):
        raise ValidationFailed(details={name: "a seq: a whole number from 0"})
    return int(text)


async def frames(follower: Follower) -> AsyncIterator[bytes]:
    """What goes over the wire, up to the task's last event; comments keep proxies from closing it."""
    yield COMMENT  # the headers leave with it
    async with aclosing(follower.events()) as events:
        async for told in events:
            yield COMMENT if told is None else _frame(told)


def _frame(told: Told) -> bytes:
    """One event of the stream. JSON holds no line breaks of its own."""
    head = "" if told.number is None else f"id: {told.number}\n"
    return f"{head}data: {told.text}\n\n".encode()
