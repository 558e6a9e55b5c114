"""`/internal/v1`: what services of the platform ask, with the platform's own token.

A service acts for a tenant that it names, always; what is another tenant's is not found.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from agents.errors import AgentNotFound
from agents.published_selectors import version_id_of
from agents.selectors import agent_get, agent_live, agent_version
from agents.validation import validation_of
from core.actions.base import ActionResult
from core.actions.bus import execute
from core.api.authentication import SERVICE, ServiceTokenAuthentication
from core.api.pages import NUMBER, number_of
from core.api.views import ActionView, ApiView
from core.audit import asked_by, with_actor
from core.errors import TaskNotFound, ValidationFailed
from core.ids import SLUG_PATTERN, is_slug, parse_uuid
from core.ratelimits import token_refused
from core.selectors import tenant_limits
from core.tenancy import tenant_scope
from orchestrator.actions import ServiceEventBody, ServiceTellAction
from orchestrator.errors import ServiceTokenRequired
from orchestrator.execution_actions import StartedExecution
from orchestrator.idempotency import HEADER, Once
from orchestrator.internal import (
    InternalAgent,
    InternalAgentCheck,
    InternalExecutionBody,
    InternalTask,
    InternalTenantBody,
)
from orchestrator.selectors import task_get
from orchestrator.views.health import DetailedHealthView

_TENANT = OpenApiParameter("tenant_id", str, pattern=SLUG_PATTERN, required=True)


class ServiceView(ApiView):
    """An endpoint for services: needs the platform's token. Where none is set, nobody gets in."""

    authentication_classes = [ServiceTokenAuthentication]
    callers = "service token"

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if request.auth != SERVICE:
            shown = "authorization" in request.headers
            raise token_refused(ServiceTokenRequired()) if shown else ServiceTokenRequired()


class InternalHealthView(ServiceView, DetailedHealthView):
    """How the platform is, to one that can show the token."""

    @extend_schema(operation_id="internal_health", responses={200: dict, 503: dict})
    def get(self, request: Request) -> Response:
        """As `/health/detailed`, for a service that wants to know whether its token is taken."""
        return super().get(request)


class InternalAgentView(ServiceView):
    @extend_schema(
        operation_id="internal_agents_read",
        parameters=[
            _TENANT,
            OpenApiParameter("version", NUMBER, description="the published one when absent"),
        ],
        responses={200: InternalAgent},
    )
    def get(self, request: Request, agent_id: str) -> Response:
        """The configuration that a run of the agent needs: of the published version, or of the one named.

        An agent that is a draft is not found; one that is switched off answers 403 (`Suspended`).
        """
        pk, tenant_id = _agent_id(agent_id), _tenant(request)
        number = number_of(request, "version")
        with _acting_for(tenant_id):
            live = agent_live(pk, tenant_id)
            agent = agent_get(pk)
            version = agent_version(version_id_of(pk, number) if number is not None else live.version_id)
        shown = InternalAgent(
            agent_id=pk,
            tenant_id=tenant_id,
            slug=agent.slug,
            name=agent.name,
            type=agent.type,
            version=version.number,
            config=version.config,
        )
        return Response(shown.model_dump(mode="json"))


class InternalAgentValidateView(ServiceView):
    @extend_schema(
        operation_id="internal_agents_validate",
        request=InternalTenantBody,
        responses={200: InternalAgentCheck},
    )
    def post(self, request: Request, agent_id: str) -> Response:
        """Whether the agent will answer, at once and without asking its provider."""
        pk = _agent_id(agent_id)
        tenant_id = InternalTenantBody(**self.body(request)).tenant_id
        with _acting_for(tenant_id):
            agent = agent_get(pk)
            known = validation_of(agent)
        suspended = agent.suspended_at is not None or tenant_limits(tenant_id).suspended
        published = agent.published.number if agent.published is not None else None
        invalid = known is not None and known.status == "invalid"
        shown = InternalAgentCheck(
            agent_id=pk,
            tenant_id=tenant_id,
            valid=published is not None and not suspended and not invalid,
            published_version=published,
            suspended=suspended,
            findings=list(known.findings) if known is not None else [],
        )
        return Response(shown.model_dump(mode="json"))


class InternalTaskView(ServiceView):
    @extend_schema(operation_id="internal_tasks_read", parameters=[_TENANT], responses={200: InternalTask})
    def get(self, request: Request, task_id: str) -> Response:
        """How a task of the tenant stands, whatever it does."""
        pk = parse_uuid(task_id)
        if pk is None:
            raise TaskNotFound()
        with _acting_for(_tenant(request)):
            task = task_get(pk)
        fields = {name: getattr(task, name) for name in InternalTask.model_fields if name != "task_id"}
        return Response(InternalTask(task_id=task.pk, **fields).model_dump(mode="json"))


class InternalTaskUpdatesView(ServiceView, ActionView):
    @extend_schema(
        operation_id="internal_task_updates", request=ServiceEventBody, responses={200: ActionResult}
    )
    def post(self, request: Request) -> Response:
        """Tell an event of a task, or of a thing of the tenant's: as a frame of `WS /ws/task_updates`."""
        event = ServiceEventBody(**self.body(request))
        fields = event.model_dump(exclude={"tenant_id", "seq"}, exclude_none=True)
        if event.event_id is not None:
            fields["action_id"] = str(event.event_id)
        with _acting_for(event.tenant_id, f"service:{event.service}"):
            return self.respond(request, ServiceTellAction(**fields))


class InternalExecutionsView(ServiceView):
    @extend_schema(
        operation_id="internal_executions_create",
        parameters=[
            OpenApiParameter(
                HEADER,
                {"type": "string", "pattern": r"^[!-~][ -~]{20,253}[!-~]$"},
                OpenApiParameter.HEADER,
                description="22 to 255 printable ASCII characters, unique per agent for 24 hours",
            )
        ],
        request=InternalExecutionBody,
        responses={202: StartedExecution},
    )
    def post(self, request: Request) -> Response:
        """Run an agent of the tenant's without a session. How it stands: `/internal/v1/tasks/{task_id}`."""
        body = self.body(request)
        asked = InternalExecutionBody(**body)
        with _acting_for(asked.tenant_id):
            start = functools.partial(self._start, asked)
            key = request.headers.get(HEADER)
            return start() if key is None else Once.of(key, body, asked.agent_id, None, None).answer(start)

    def _start(self, asked: InternalExecutionBody) -> Response:
        return Response(execute(asked.action()).model_dump(mode="json"), status=202)


def _tenant(request: Request) -> str:
    """The tenant of the query. Raises ValidationFailed."""
    text: str = request.query_params.get("tenant_id") or ""
    if not is_slug(text):
        raise ValidationFailed(details={"tenant_id": "a tenant's id"})
    return text


@contextmanager
def _acting_for(tenant_id: str, actor: str = "service") -> Iterator[None]:
    """Raises TenantNotFound."""
    tenant_limits(tenant_id)
    with tenant_scope(tenant_id), asked_by(with_actor(actor)):
        yield


def _agent_id(text: str) -> uuid.UUID:
    agent_id = parse_uuid(text)
    if agent_id is None:
        raise AgentNotFound()
    return agent_id
