"""An agent's versions over HTTP: look, compare, publish, go back."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from agents.actions import (
    AgentPublishAction,
    AgentResource,
    AgentRollback,
    AgentRollbackAction,
    VersionResource,
)
from agents.errors import VersionNotFound
from agents.selectors import agent_get, version_changes, version_get, version_list, version_resource
from agents.serializers import VersionDiff, VersionList
from agents.views.base import IF_MATCH, AgentManagementView, answer, uuid_of
from core.actions.bus import execute
from core.api.pages import NUMBER, NUMBERED_PAGE, limit_of, number_of
from core.errors import ValidationFailed


class VersionsView(AgentManagementView):
    @extend_schema(
        operation_id="agents_versions_list", parameters=[*NUMBERED_PAGE], responses={200: VersionList}
    )
    def get(self, request: Request, agent_id: str) -> Response:
        """List the agent's versions, newest first."""
        agent = agent_get(uuid_of(agent_id))
        limit = limit_of(request)
        versions = version_list(agent, number_of(request, "cursor"), limit + 1)
        following = str(versions[limit - 1].number) if len(versions) > limit else None
        items = [version_resource(agent, version).model_dump(mode="json") for version in versions[:limit]]
        return Response({"items": items, "next": following})


class VersionView(AgentManagementView):
    @extend_schema(operation_id="agents_versions_read", responses={200: VersionResource})
    def get(self, request: Request, agent_id: str, number: str) -> Response:
        """Read one version of an agent."""
        agent = agent_get(uuid_of(agent_id))
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise VersionNotFound()
        version = version_get(agent, int(number))
        return Response(version_resource(agent, version).model_dump(mode="json"))


class DiffView(AgentManagementView):
    @extend_schema(
        operation_id="agents_diff",
        parameters=[
            OpenApiParameter("from", NUMBER, required=True, description="The version to compare with."),
            OpenApiParameter("to", NUMBER, required=True, description="The version that is compared."),
        ],
        responses={200: VersionDiff},
    )
    def get(self, request: Request, agent_id: str) -> Response:
        """Compare two versions of an agent, field by field; long texts also line by line."""
        agent = agent_get(uuid_of(agent_id))
        numbers = {name: number_of(request, name) for name in ("from", "to")}
        missing = {name: "the number of a version" for name, number in numbers.items() if number is None}
        if missing:
            raise ValidationFailed(details=missing)
        before, after = (version_get(agent, number) for number in numbers.values() if number)
        changes = [change.as_dict() for change in version_changes(before, after)]
        return Response({"agent_id": str(agent.pk), **numbers, "diff": changes})


class PublishView(AgentManagementView):
    @extend_schema(
        operation_id="agents_publish", parameters=[IF_MATCH], request=None, responses={200: AgentResource}
    )
    def post(self, request: Request, agent_id: str) -> Response:
        """Let the newest version answer."""
        self.no_fields(request)
        return answer(execute(AgentPublishAction(**self.change(request, agent_id))))


class RollbackView(AgentManagementView):
    @extend_schema(
        operation_id="agents_rollback",
        parameters=[IF_MATCH],
        request=AgentRollback,
        responses={200: AgentResource},
    )
    def post(self, request: Request, agent_id: str) -> Response:
        """Make an old configuration the newest version; of a published agent it answers at once."""
        change = self.change(request, agent_id)
        return answer(execute(AgentRollbackAction(**self.fields(request, AgentRollback), **change)))
