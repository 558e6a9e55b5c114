"""Chat over HTTP. Public: the agent decides who pays, a task's id is enough to ask about it."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework.request import Request
from rest_framework.response import Response

from agents.selectors import agent_live
from core.api.views import ActionView
from core.errors import ValidationFailed
from core.ids import SLUG_PATTERN
from core.ratelimits import count_request, request_of
from core.tenancy import tenant_scope
from orchestrator.actions import (
    CancelBody,
    ChatCancelTaskAction,
    ChatGetStatusAction,
    ChatMessageBody,
    ChatSendMessageAction,
    TaskBody,
)
from orchestrator.admission import RESUME_HEADER, Visitor, visited_by
from orchestrator.authentication import KEY_OR_TOKEN
from orchestrator.idempotency import HEADER, KEY, Once
from orchestrator.selectors import task_tenant
from orchestrator.serializers import ChatMessageAnswer, TaskCancelledAnswer, TaskStateAnswer

_TENANT = OpenApiParameter(
    "tenant_id", str, pattern=SLUG_PATTERN, description="The task's tenant; another one answers 404"
)
_ONCE = OpenApiParameter(
    HEADER,
    KEY,
    OpenApiParameter.HEADER,
    description=(
        "16 to 255 printable ASCII characters. For 24 hours the same request with the same key has no"
        " second effect and gets the first one's answer. A key is unique per API key; without one per agent"
        " and session_id; without either it has at least 22 characters"
    ),
)


_RESUME = OpenApiParameter(
    RESUME_HEADER,
    str,
    OpenApiParameter.HEADER,
    description="The session's resume token, where the agent requires one",
)
# Nothing for agents that are open to all; a key or an end-user token for the others.
WHO: Any = [{}, {"tenantKey": []}, {"endUserToken": []}]


class SendMessageView(ActionView):
    authentication_classes = KEY_OR_TOKEN
    callers = "anybody, where the agent asks for nothing; tenant key `chat:write`, end-user token"

    @extend_schema(
        operation_id="chat_send_message",
        auth=WHO,
        parameters=[_ONCE, _RESUME],
        request=ChatMessageBody,
        responses={202: ChatMessageAnswer},
    )
    def post(self, request: Request) -> Response:
        """Ask an agent. 202: the question is stored, the answer comes over the session's WebSocket.

        An agent may ask for a key or an end-user token, and browsers for an origin that it allows: else 403.
        """
        body = self.body(request)
        action = ChatSendMessageAction(**ChatMessageBody(**body).__dict__)
        agent = agent_live(action.agent_id, action.tenant_id)
        count_request(agent.tenant_id)
        visitor = Visitor.of_request(request, agent.tenant_id)
        key = request.headers.get(HEADER)
        once = None
        if key is not None:
            owner = visitor.key or visitor.user
            once = Once.of(key, body, action.agent_id, action.session_id, owner)
        with tenant_scope(agent.tenant_id), visited_by(visitor):
            return once.answer(lambda: self._send(request, action)) if once else self._send(request, action)

    def _send(self, request: Request, action: ChatSendMessageAction) -> Response:
        response = self.respond(request, action, status=202)
        if response.status_code == 202:
            result = response.data["result"]
            result["websocket_url"] = websocket_url(request, result["websocket_url"])
            result["events_url"] = request.build_absolute_uri(result["events_url"])
        return response


@extend_schema_view(post=extend_schema(operation_id="chat_send_message_alias"))
class SendMessageAliasView(SendMessageView):
    """`POST /api/chat/send`: another name of the same."""


def websocket_url(request: HttpRequest | Request, path: str) -> str:
    """The absolute address of a socket, on the host that the caller used."""
    return f"{'wss' if request.is_secure() else 'ws'}://{request.get_host()}{path}"


class _TaskView(ActionView):
    # The task's id is enough: an end-user token that comes along is not looked at.
    authentication_classes = KEY_OR_TOKEN
    callers = "who has the task's id"

    def _status(self, request: Request, fields: dict[str, Any]) -> Response:
        with request_of(task_tenant(fields["task_id"], fields.get("tenant_id"))):
            return self.respond(request, ChatGetStatusAction(**fields))

    def _cancel(self, request: Request, fields: dict[str, Any]) -> Response:
        with request_of(task_tenant(fields["task_id"], fields.get("tenant_id"))):
            return self.respond(request, ChatCancelTaskAction(**fields))


class StatusView(_TaskView):
    @extend_schema(
        operation_id="chat_get_status", auth=[], parameters=[_TENANT], responses={200: TaskStateAnswer}
    )
    def get(self, request: Request, task_id: str) -> Response:
        """How a task stands, and its answer once there is one."""
        return self._status(request, {"task_id": task_id, **_tenant(request)})


class CancelView(_TaskView):
    @extend_schema(
        operation_id="chat_cancel_task",
        auth=[],
        parameters=[_TENANT, OpenApiParameter("only_if_queued", bool)],
        request=None,
        responses={200: TaskCancelledAnswer},
    )
    def post(self, request: Request, task_id: str) -> Response:
        """Stop a task that waits or runs; the text so far is kept."""
        fields = self.body(request) | {"task_id": task_id, **_tenant(request), **_flag(request)}
        return self._cancel(request, CancelBody(**fields).model_dump())


class StatusAliasView(_TaskView):
    @extend_schema(
        operation_id="chat_get_status_alias", auth=[], request=TaskBody, responses={200: TaskStateAnswer}
    )
    def post(self, request: Request) -> Response:
        """Like `GET /api/v1/chat/status/{task_id}`, ids in the body."""
        return self._status(request, TaskBody(**self.body(request)).model_dump())


class CancelAliasView(_TaskView):
    @extend_schema(
        operation_id="chat_cancel_task_alias",
        auth=[],
        request=CancelBody,
        responses={200: TaskCancelledAnswer},
    )
    def post(self, request: Request) -> Response:
        """Like `POST /api/v1/chat/cancel/{task_id}`, ids in the body."""
        return self._cancel(request, CancelBody(**self.body(request)).model_dump())


def _tenant(request: Request) -> dict[str, str]:
    tenant_id = request.query_params.get("tenant_id")
    return {"tenant_id": tenant_id} if tenant_id is not None else {}


def _flag(request: Request) -> dict[str, bool]:
    flag = request.query_params.get("only_if_queued")
    if flag is None:
        return {}
    if flag not in ("true", "false"):
        raise ValidationFailed(details={"only_if_queued": "true or false"})
    return {"only_if_queued": flag == "true"}
