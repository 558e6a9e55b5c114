"""Mass updates over HTTP."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from agents.bulk_actions import AgentAskBulkUpdateAction, AgentBulkUpdate, BulkState
from agents.bulk_selectors import bulk_state, bulk_task
from agents.views.base import AgentManagementView
from core.actions.base import ActionResult
from core.actions.tasks import TaskCancelAction
from core.api.pages import NUMBERED_PAGE, limit_of, number_of
from core.api.parsers import MAX_IMPORT
from core.api.views import ActionView


class BulkUpdatesView(AgentManagementView, ActionView):
    max_body = MAX_IMPORT

    @extend_schema(operation_id="agents_bulk", request=AgentBulkUpdate, responses={202: ActionResult})
    def post(self, request: Request) -> Response:
        """Change many agents, in the background. One that is refused does not stop the others."""
        fields = self.fields(request, AgentBulkUpdate)
        return self.respond(
            request, AgentAskBulkUpdateAction(**fields, actor=self.actor(request)), status=202
        )


class BulkUpdateView(AgentManagementView):
    @extend_schema(operation_id="agents_bulk_read", parameters=[*NUMBERED_PAGE], responses={200: BulkState})
    def get(self, request: Request, task_id: str) -> Response:
        """Read how far a mass update is, and what became of each agent so far, in the order asked."""
        state = bulk_state(bulk_task(task_id), number_of(request, "cursor"), limit_of(request))
        return Response(state.model_dump(mode="json"))


class BulkCancelView(AgentManagementView, ActionView):
    @extend_schema(operation_id="agents_bulk_cancel", request=None, responses={200: ActionResult})
    def post(self, request: Request, task_id: str) -> Response:
        """Stop a mass update: what is changed stays changed."""
        self.no_fields(request)
        task = bulk_task(task_id)
        return self.respond(request, TaskCancelAction(task_id=task.pk, by=self.actor(request)))
