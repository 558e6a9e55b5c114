"""Agents over HTTP."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from agents.actions import (
    AgentCreate,
    AgentCreateAction,
    AgentDeleteAction,
    AgentResource,
    AgentUpdate,
    AgentUpdateAction,
)
from agents.errors import AgentNotFound
from agents.selectors import agent_get, agent_list, agent_resource
from agents.serializers import AgentList
from core.actions.bus import execute
from core.api.pages import cursor_of, limit_of
from core.api.views import KeyView
from core.ids import parse_uuid


def _answer(agent: AgentResource, status: int = 200) -> Response:
    body = agent.model_dump(mode="json")
    return Response(body, status=status, headers={"ETag": f'"{agent.version}"'})


class AgentsView(KeyView):
    area = "agents"

    @extend_schema(
        operation_id="agents_list",
        parameters=[OpenApiParameter("limit", int), OpenApiParameter("cursor", str)],
        responses={200: AgentList},
    )
    def get(self, request: Request) -> Response:
        """List the tenant's agents, oldest first."""
        limit = limit_of(request)
        agents = agent_list(cursor_of(request), limit + 1)
        following = str(agents[limit - 1].pk) if len(agents) > limit else None
        items = [agent_resource(agent).model_dump(mode="json") for agent in agents[:limit]]
        return Response({"items": items, "next": following})

    @extend_schema(operation_id="agents_create", request=AgentCreate, responses={201: AgentResource})
    def post(self, request: Request) -> Response:
        """Create an agent with its version 1."""
        fields = self.fields(request, AgentCreate)
        return _answer(execute(AgentCreateAction(**fields, actor=self.actor(request))), status=201)


class AgentView(KeyView):
    area = "agents"

    @extend_schema(operation_id="agents_read", responses={200: AgentResource})
    def get(self, request: Request, agent_id: str) -> Response:
        """Read an agent."""
        return _answer(agent_resource(agent_get(_uuid(agent_id))))

    @extend_schema(operation_id="agents_update", request=AgentUpdate, responses={200: AgentResource})
    def patch(self, request: Request, agent_id: str) -> Response:
        """Change an agent. A changed `config`, merged over the present one, is a new version."""
        fields = self.fields(request, AgentUpdate)
        action = AgentUpdateAction(**fields, agent_id=_uuid(agent_id), actor=self.actor(request))
        return _answer(execute(action))

    @extend_schema(operation_id="agents_delete", responses={204: None})
    def delete(self, request: Request, agent_id: str) -> Response:
        """Delete an agent: it answers nobody any more, its conversations stay."""
        execute(AgentDeleteAction(agent_id=_uuid(agent_id), actor=self.actor(request)))
        return Response(status=204)


def _uuid(text: str) -> Any:
    found = parse_uuid(text)
    if found is None:
        raise AgentNotFound()
    return found
