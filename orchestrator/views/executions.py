"""Runs without a session over HTTP."""

from __future__ import annotations

import asyncio
import functools
import uuid
from contextlib import aclosing, suppress
from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from core.actions.bus import execute
from core.api.late import Answer, LateResponse
from core.api.pages import PAGE, cursor_of, limit_of
from core.api.views import KeyView
from core.errors import TaskNotFound, ValidationFailed
from core.ids import parse_uuid
from core.models import ApiKey
from core.models.task import FINAL, TaskStatus
from core.tenancy import current_tenant_id, tenant_scope
from orchestrator.admission import Visitor, visited_by
from orchestrator.execution_actions import (
    ExecutionBody,
    ExecutionList,
    ExecutionResource,
    ExecutionStarted,
)
from orchestrator.execution_selectors import execution_get, execution_list, execution_resource
from orchestrator.following import Follower, ends
from orchestrator.idempotency import HEADER, KEY, Once
from orchestrator.snapshots import in_thread

_ONCE = OpenApiParameter(
    HEADER,
    KEY,
    OpenApiParameter.HEADER,
    description=(
        "16 to 255 printable ASCII characters, unique per API key. For 24 hours the same request with the"
        " same key has no second effect and gets the first one's answer"
    ),
)


class ExecutionsView(KeyView):
    area = "chat"

    @extend_schema(
        operation_id="executions_create",
        parameters=[_ONCE],
        request=ExecutionBody,
        responses={202: ExecutionStarted, 200: ExecutionResource},
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Run an agent without a session. 202: accepted; 200: it has ended within `wait` seconds."""
        body = self.body(request)
        asked = ExecutionBody(**body)
        key = request.headers.get(HEADER)
        start = functools.partial(self._start, request, asked)
        if key is None:
            response = start()
        else:
            assert isinstance(request.auth, ApiKey)
            response = Once.of(key, body, asked.agent_id, None, request.auth).answer(start)
        if asked.wait is None:
            return response
        wait = _Wait(current_tenant_id(), response.data, asked.wait)
        return LateResponse(wait.answer)

    def _start(self, request: Request, asked: ExecutionBody) -> Response:
        with visited_by(Visitor.of_request(request, current_tenant_id())):
            run = execute(asked.action())
        events_url = _events_url(request, run.task_id)
        return Response({**run.model_dump(mode="json"), "events_url": events_url}, status=202)

    @extend_schema(
        operation_id="executions_list",
        parameters=[
            *PAGE,
            OpenApiParameter("agent_id", uuid.UUID),
            OpenApiParameter("status", str, enum=TaskStatus.values),
        ],
        responses={200: ExecutionList},
    )
    def get(self, request: Request) -> Response:
        """List the tenant's runs without a session, newest first."""
        limit = limit_of(request)
        tasks = execution_list(
            cursor_of(request), limit + 1, agent_id=_agent_id(request), status=_status(request)
        )
        shown = [execution_resource(task, _events_url(request, task.pk)) for task in tasks[:limit]]
        following = str(tasks[limit - 1].pk) if len(tasks) > limit else None
        return Response({"items": [item.model_dump(mode="json") for item in shown], "next": following})


class ExecutionView(KeyView):
    area = "chat"

    @extend_schema(operation_id="executions_get", responses={200: ExecutionResource})
    def get(self, request: Request, task_id: str) -> Response:
        """How a run without a session stands, and its answer once there is one."""
        pk = parse_uuid(task_id)
        if pk is None:
            raise TaskNotFound()
        resource = execution_resource(execution_get(pk), _events_url(request, pk))
        return Response(resource.model_dump(mode="json"))


class _Wait:
    """Holds an answer back until the run has ended, or for `seconds`. The run goes on in any case."""

    def __init__(self, tenant_id: str, started: dict[str, Any], seconds: float) -> None:
        self._tenant_id = tenant_id
        self._started = started
        self._seconds = seconds
        self._task_id = uuid.UUID(started["task_id"])

    async def answer(self) -> Answer:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await self._end()
        resource = await in_thread(self._resource)
        if resource["status"] in FINAL:
            return Answer(200, resource)
        return Answer(202, {**self._started, "status": resource["status"]})

    async def _end(self) -> None:
        """Returns with the run's end; the row is settled before that is told."""
        follower = Follower(self._tenant_id, "", self._task_id)
        async with aclosing(follower.events()) as events:
            async for told in events:
                if told is not None and ends(told.event):
                    return

    def _resource(self) -> dict[str, Any]:
        with tenant_scope(self._tenant_id):
            task = execution_get(self._task_id)
            return execution_resource(task, self._started["events_url"]).model_dump(mode="json")


def _events_url(request: Request, task_id: uuid.UUID) -> str:
    return request.build_absolute_uri(f"/api/v1/chat/stream/{task_id}")


def _agent_id(request: Request) -> uuid.UUID | None:
    text = request.query_params.get("agent_id")
    if text is None:
        return None
    agent_id = parse_uuid(text)
    if agent_id is None:
        raise ValidationFailed(details={"agent_id": "not an id"})
    return agent_id


def _status(request: Request) -> str | None:
    text = request.query_params.get("status")
    if text is None:
        return None
    if text not in TaskStatus.values:
        raise ValidationFailed(details={"status": f"one of {', '.join(TaskStatus.values)}"})
    return text
