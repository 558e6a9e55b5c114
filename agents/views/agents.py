"""Agents over HTTP: one by one, in lists, copied and moved."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from agents.actions import (
    AgentCreate,
    AgentCreateAction,
    AgentDeleteAction,
    AgentDuplicate,
    AgentDuplicateAction,
    AgentImportAction,
    AgentResource,
    AgentRestoreAction,
    AgentSuspend,
    AgentSuspendAction,
    AgentUnsuspendAction,
    AgentUpdate,
    AgentUpdateAction,
)
from agents.document import AgentDocument
from agents.selectors import agent_document, agent_get, agent_list, agent_resource
from agents.serializers import AgentList
from agents.views.base import IF_MATCH, AgentManagementView, answer, uuid_of
from core.actions.bus import execute
from core.api.pages import PAGE, cursor_of, limit_of
from core.api.parsers import MAX_IMPORT
from core.errors import ValidationFailed


class AgentsView(AgentManagementView):
    @extend_schema(
        operation_id="agents_list",
        parameters=[*PAGE, OpenApiParameter("deleted", bool, description="The deleted ones instead.")],
        responses={200: AgentList},
    )
    def get(self, request: Request) -> Response:
        """List the tenant's agents, oldest first; or its deleted ones."""
        limit = limit_of(request)
        agents = agent_list(cursor_of(request), limit + 1, deleted=_deleted(request))
        following = str(agents[limit - 1].pk) if len(agents) > limit else None
        items = [agent_resource(agent).model_dump(mode="json") for agent in agents[:limit]]
        return Response({"items": items, "next": following})

    @extend_schema(operation_id="agents_create", request=AgentCreate, responses={201: AgentResource})
    def post(self, request: Request) -> Response:
        """Create an agent with its version 1."""
        fields = self.fields(request, AgentCreate)
        return answer(execute(AgentCreateAction(**fields, actor=self.actor(request))), status=201)


class AgentView(AgentManagementView):
    @extend_schema(operation_id="agents_read", responses={200: AgentResource})
    def get(self, request: Request, agent_id: str) -> Response:
        """Read an agent."""
        return answer(agent_resource(agent_get(uuid_of(agent_id))))

    @extend_schema(
        operation_id="agents_update",
        parameters=[IF_MATCH],
        request=AgentUpdate,
        responses={200: AgentResource},
    )
    def patch(self, request: Request, agent_id: str) -> Response:
        """Change an agent. A changed `config`, merged over the newest one, is a new version."""
        change = self.change(request, agent_id)
        return answer(execute(AgentUpdateAction(**self.fields(request, AgentUpdate), **change)))

    @extend_schema(operation_id="agents_delete", parameters=[IF_MATCH], responses={204: None})
    def delete(self, request: Request, agent_id: str) -> Response:
        """Delete an agent: it answers nobody any more, its conversations and versions stay."""
        execute(AgentDeleteAction(**self.change(request, agent_id)))
        return Response(status=204)


class RestoreView(AgentManagementView):
    @extend_schema(
        operation_id="agents_restore", parameters=[IF_MATCH], request=None, responses={200: AgentResource}
    )
    def post(self, request: Request, agent_id: str) -> Response:
        """Bring a deleted agent back as it was. A slug that is taken meanwhile gets a suffix."""
        self.no_fields(request)
        return answer(execute(AgentRestoreAction(**self.change(request, agent_id))))


class SuspendView(AgentManagementView):
    @extend_schema(
        operation_id="agents_suspend",
        parameters=[IF_MATCH],
        request=AgentSuspend,
        responses={200: AgentResource},
    )
    def post(self, request: Request, agent_id: str) -> Response:
        """Switch an agent off: new messages answer 403, what runs or waits is cancelled, sockets close."""
        change = self.change(request, agent_id)
        return answer(execute(AgentSuspendAction(**self.fields(request, AgentSuspend), **change)))


class UnsuspendView(AgentManagementView):
    @extend_schema(
        operation_id="agents_unsuspend", parameters=[IF_MATCH], request=None, responses={200: AgentResource}
    )
    def post(self, request: Request, agent_id: str) -> Response:
        """Switch an agent on again. What was cancelled stays so."""
        self.no_fields(request)
        return answer(execute(AgentUnsuspendAction(**self.change(request, agent_id))))


class DuplicateView(AgentManagementView):
    @extend_schema(operation_id="agents_duplicate", request=AgentDuplicate, responses={201: AgentResource})
    def post(self, request: Request, agent_id: str) -> Response:
        """Make an agent like this one: same status, newest configuration, no history."""
        fields = self.fields(request, AgentDuplicate)
        action = AgentDuplicateAction(**fields, agent_id=uuid_of(agent_id), actor=self.actor(request))
        return answer(execute(action), status=201)


class ExportView(AgentManagementView):
    @extend_schema(operation_id="agents_export", responses={200: AgentDocument})
    def get(self, request: Request, agent_id: str) -> Response:
        """Read an agent as one document, which `import` takes: newest configuration, no secret."""
        return Response(agent_document(agent_get(uuid_of(agent_id))).model_dump(mode="json"))


class ImportView(AgentManagementView):
    max_body = MAX_IMPORT

    @extend_schema(operation_id="agents_import", request=AgentDocument, responses={201: AgentResource})
    def post(self, request: Request) -> Response:
        """Make an agent of an exported one. A slug that is taken gets a suffix."""
        document = AgentDocument(**self.body(request))
        action = AgentImportAction(document=document, actor=self.actor(request))
        return answer(execute(action), status=201)


def _deleted(request: Request) -> bool:
    text = request.query_params.get("deleted", "false")
    if text not in ("true", "false"):
        raise ValidationFailed(details={"deleted": "true or false"})
    return text == "true"
