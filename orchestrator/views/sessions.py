"""A session's past over HTTP."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from conversations.errors import SessionNotFound
from conversations.selectors import session_messages
from core.api.pages import limit_of
from core.api.views import ApiView
from core.errors import PermissionRefused, ValidationFailed
from core.ids import is_session_id
from core.models import ApiKey
from core.tenancy import tenant_scope
from orchestrator.access import Resume
from orchestrator.serializers import MessageItem, MessageList


class SessionMessagesView(ApiView):
    @extend_schema(
        operation_id="session_messages",
        parameters=[
            OpenApiParameter("Nooble-Resume", str, OpenApiParameter.HEADER, description="The resume token"),
            OpenApiParameter("limit", int),
            OpenApiParameter("cursor", str),
        ],
        responses={200: MessageList},
    )
    def get(self, request: Request, session_id: str) -> Response:
        """What was said, oldest first: all of it to a key, what its token opens to a client."""
        if not is_session_id(session_id):
            raise SessionNotFound()
        tenant_id, from_seq = self._opened(request, session_id)
        limit = limit_of(request)
        after = request.query_params.get("cursor") or "0"
        if not after.isascii() or not after.isdecimal() or len(after) > 18:
            raise ValidationFailed(details={"cursor": "not a cursor of ours"})
        with tenant_scope(tenant_id):
            rows = session_messages(session_id, from_seq, int(after), limit + 1)
        items = [MessageItem(**row).model_dump(mode="json") for row in rows[:limit]]
        return Response({"items": items, "next": str(items[-1]["id"]) if len(rows) > limit else None})

    def _opened(self, request: Request, session_id: str) -> tuple[str, int]:
        """The tenant, and the seq from which on the caller may read. Raises PermissionRefused."""
        if isinstance(request.auth, ApiKey):
            if "sessions:read" not in request.auth.scopes:
                raise PermissionRefused(details={"scope": "sessions:read"})
            return request.auth.tenant_id, 0
        resume = Resume.verify(request.headers.get("nooble-resume", ""), None, session_id)
        if resume is None:
            raise PermissionRefused(details={"header": "Nooble-Resume"})
        return resume.tenant_id, resume.from_seq
