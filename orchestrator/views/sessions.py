"""Sessions over HTTP: what management sees and does, and a session's past for its clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from django.http import StreamingHttpResponse
from django.utils.translation import get_language
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from conversations.actions import (
    DeletedSessions,
    SessionCloseAction,
    SessionCreate,
    SessionCreateAction,
    SessionDeleteAction,
    SessionDeleteOfUserAction,
    SessionResource,
    SessionUpdate,
    SessionUpdateAction,
)
from conversations.errors import SessionNotFound
from conversations.models import SessionState
from conversations.selectors import (
    CURSOR_PATTERN,
    SessionCursor,
    session_get,
    session_list,
    session_messages,
    session_resource,
)
from conversations.transcript import FORMS, Transcript
from core.actions.bus import execute
from core.api.pages import LIMIT, NUMBER, limit_of, text_of
from core.api.views import ApiView, KeyView
from core.errors import PermissionRefused, ValidationFailed
from core.ids import is_session_id, parse_uuid
from core.models import ApiKey
from core.ratelimits import request_of, token_refused
from core.tenancy import current_tenant_id, tenant_scope
from orchestrator.access import Resume
from orchestrator.admission import Listener, Visitor
from orchestrator.authentication import KEY_OR_TOKEN
from orchestrator.serializers import MessageItem, MessageList, NewSession, SessionList
from orchestrator.snapshots import in_thread

LONGEST_USER_ID = 255
USER_ID = {"type": "string", "maxLength": LONGEST_USER_ID}


def _shown(resource: SessionResource) -> dict[str, Any]:
    return resource.model_dump(mode="json")


def _known(session_id: str) -> str:
    if not is_session_id(session_id):
        raise SessionNotFound()
    return session_id


def _one_of(request: Request, name: str, values: list[str]) -> str:
    """The parameter, or nothing. Raises ValidationFailed."""
    text: str | None = request.query_params.get(name)
    if text is None:
        return ""
    if text not in values:
        raise ValidationFailed(details={name: f"one of {', '.join(values)}"})
    return text


class SessionsView(KeyView):
    area = "sessions"

    @extend_schema(
        operation_id="sessions_list",
        parameters=[
            LIMIT,
            OpenApiParameter("cursor", str, pattern=CURSOR_PATTERN),
            OpenApiParameter("agent_id", OpenApiTypes.UUID),
            OpenApiParameter("user_id", USER_ID, description="The end user, as user_info told it"),
            OpenApiParameter("state", str, enum=SessionState.values),
        ],
        responses={200: SessionList},
    )
    def get(self, request: Request) -> Response:
        """List the tenant's sessions, those that began last first."""
        limit = limit_of(request)
        text = request.query_params.get("cursor")
        cursor = SessionCursor.parse(text) if text is not None else None
        if text is not None and cursor is None:
            raise ValidationFailed(details={"cursor": "not a cursor of ours"})
        agent = request.query_params.get("agent_id")
        agent_id = parse_uuid(agent) if agent is not None else None
        if agent is not None and agent_id is None:
            raise ValidationFailed(details={"agent_id": "an agent's id"})
        sessions = session_list(
            cursor,
            limit + 1,
            agent_id=agent_id,
            user_id=text_of(request, "user_id", LONGEST_USER_ID) or "",
            state=_one_of(request, "state", SessionState.values),
        )
        following = str(SessionCursor.of(sessions[limit - 1])) if len(sessions) > limit else None
        items = [_shown(session_resource(session)) for session in sessions[:limit]]
        return Response({"items": items, "next": following})

    @extend_schema(operation_id="sessions_create", request=SessionCreate, responses={201: NewSession})
    def post(self, request: Request) -> Response:
        """Begin a session before anybody speaks in it. The answer has its `resume_token`, for the client."""
        fields = self.fields(request, SessionCreate)
        made = execute(SessionCreateAction(**fields))
        token = Resume(current_tenant_id(), made.session_id, from_seq=0).token()
        return Response({**_shown(made), "resume_token": token}, status=201)

    @extend_schema(
        operation_id="sessions_delete_of_user",
        parameters=[OpenApiParameter("user_id", {**USER_ID, "minLength": 1}, required=True)],
        responses={200: DeletedSessions},
    )
    def delete(self, request: Request) -> Response:
        """Delete all sessions of one end user with everything that belongs to them."""
        user_id = text_of(request, "user_id", LONGEST_USER_ID)
        if not user_id:
            raise ValidationFailed(details={"user_id": "whose sessions are to be deleted"})
        done = execute(SessionDeleteOfUserAction(user_id=user_id, by=self.actor(request)))
        return Response(done.model_dump(mode="json"))


class SessionView(KeyView):
    area = "sessions"

    @extend_schema(operation_id="sessions_read", responses={200: SessionResource})
    def get(self, request: Request, session_id: str) -> Response:
        """Read a session: its state, who speaks in it, its context variables."""
        return Response(_shown(session_resource(session_get(_known(session_id)))))

    @extend_schema(operation_id="sessions_update", request=SessionUpdate, responses={200: SessionResource})
    def patch(self, request: Request, session_id: str) -> Response:
        """Change a session's title, and set or remove (null) context variables."""
        fields = self.fields(request, SessionUpdate)
        return Response(_shown(execute(SessionUpdateAction(**fields, session_id=_known(session_id)))))

    @extend_schema(operation_id="sessions_delete", responses={204: None})
    def delete(self, request: Request, session_id: str) -> Response:
        """Delete a session with everything that belongs to it. Its sockets are closed, its runs cancelled."""
        execute(SessionDeleteAction(session_id=_known(session_id), by=self.actor(request)))
        return Response(status=204)


class SessionCloseView(KeyView):
    area = "sessions"

    @extend_schema(operation_id="sessions_close", request=None, responses={200: SessionResource})
    def post(self, request: Request, session_id: str) -> Response:
        """End a session: it takes no more messages, and what runs in it is cancelled."""
        return Response(
            _shown(execute(SessionCloseAction(session_id=_known(session_id), by=self.actor(request))))
        )


class SessionExportView(KeyView):
    area = "sessions"

    @extend_schema(
        operation_id="sessions_export",
        parameters=[OpenApiParameter("format", str, enum=list(FORMS), description="json when absent")],
        responses={
            (200, "application/json"): OpenApiTypes.OBJECT,
            (200, "text/markdown"): OpenApiTypes.STR,
            (200, "text/plain"): OpenApiTypes.STR,
        },
    )
    def get(self, request: Request, session_id: str) -> StreamingHttpResponse:
        """The whole session as a file: `{session, messages}`, or a transcript to read."""
        form = _one_of(request, "format", list(FORMS)) or "json"
        session = session_get(_known(session_id))
        transcript = Transcript(session, form, get_language() or "en")
        return StreamingHttpResponse(_written(session.tenant_id, transcript), headers=transcript.headers)

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        """`format` is ours, and whoever accepts the file gets its errors, too."""
        negotiated: tuple[BaseRenderer, str] = super().perform_content_negotiation(request, force=True)
        return negotiated


async def _written(tenant_id: str, transcript: Transcript) -> AsyncIterator[bytes]:
    """Piece by piece: between two of them no thread and no database connection is held."""

    def piece() -> bytes | None:
        with tenant_scope(tenant_id):
            return transcript.next()

    while (written := await in_thread(piece)) is not None:
        yield written


class SessionMessagesView(ApiView):
    authentication_classes = KEY_OR_TOKEN
    callers = "resume token; tenant key, `sessions:read`"

    @extend_schema(
        operation_id="session_messages",
        parameters=[
            OpenApiParameter("Nooble-Resume", str, OpenApiParameter.HEADER, description="The resume token"),
            LIMIT,
            OpenApiParameter("cursor", {**NUMBER, "minimum": 0}),
        ],
        responses={200: MessageList},
    )
    def get(self, request: Request, session_id: str) -> Response:
        """What was said, oldest first: all of it to a key, what its token opens to a client."""
        tenant_id, from_seq = self._opened(request, _known(session_id))
        limit = limit_of(request)
        after = request.query_params.get("cursor", "0")
        if not after.isascii() or not after.isdecimal() or len(after) > 18:
            raise ValidationFailed(details={"cursor": "not a cursor of ours"})
        with request_of(tenant_id):
            rows = session_messages(session_id, from_seq, int(after), limit + 1)
        items = [MessageItem(**row).model_dump(mode="json") for row in rows[:limit]]
        return Response({"items": items, "next": str(items[-1]["id"]) if len(rows) > limit else None})

    def _opened(self, request: Request, session_id: str) -> tuple[str, int]:
        """The tenant, and the seq from which on the caller may read. Raises PermissionRefused."""
        if isinstance(request.auth, ApiKey):
            if "sessions:read" not in request.auth.scopes:
                raise PermissionRefused(details={"scope": "sessions:read"})
            return request.auth.tenant_id, 0
        token = request.headers.get("nooble-resume", "")
        resume = Resume.verify(token, None, session_id)
        if resume is None:
            error = PermissionRefused(details={"header": "Nooble-Resume"})
            raise token_refused(error) if token else error
        visitor = Visitor.of_request(request, resume.tenant_id)
        Listener(resume.tenant_id, session_id, visitor).check_join()
        return resume.tenant_id, resume.from_seq
