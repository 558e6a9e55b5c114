"""The OpenAI-compatible API: a tenant's agents as models, for clients that know no other."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import extend_schema
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from agents.published_selectors import PublishedAgent, agent_id_named, published_agents, published_named
from core.actions.bus import execute
from core.api.errors import named
from core.api.late import EventStreamResponse, LateResponse
from core.api.schema import EVENT
from core.api.views import KeyView
from core.errors import NotFound
from core.ratelimits import told_to
from core.tenancy import current_tenant_id
from orchestrator.admission import Visitor, visited_by
from orchestrator.completions.answers import Completion
from orchestrator.completions.errors import shape
from orchestrator.completions.requests import CompletionBody
from orchestrator.serializers import ChatCompletion, Model, ModelList


class CompatibleView(KeyView):
    """Needs a tenant key with the right to chat; its errors are such as the official clients read."""

    area = "chat"

    def handle_exception(self, exc: Exception) -> Response:
        request_id: str = self.request.request_id  # type: ignore[attr-defined]
        status, body, headers = shape(named(told_to(exc)), request_id)
        return Response(body, status=status, headers=headers)

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        """Whoever accepts a stream gets its errors, too."""
        negotiated: tuple[BaseRenderer, str] = super().perform_content_negotiation(request, force=True)
        return negotiated


class CompletionsView(CompatibleView):
    @extend_schema(
        operation_id="chat_completions_create",
        request=CompletionBody,
        responses={200: ChatCompletion, (200, "text/event-stream"): EVENT},
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Answer a conversation, as the OpenAI API does; `model` is an agent's id or slug.

        The agent's instructions come first and a system message of the request behind them. When the client
        goes away, the run is cancelled.
        """
        asked = CompletionBody.of(self.body(request))
        with visited_by(Visitor.of_request(request, current_tenant_id())):
            run = execute(asked.action(agent_id_named(asked.model)))
        completion = Completion(
            run,
            current_tenant_id(),
            asked.model,
            request.request_id,  # type: ignore[attr-defined]
            wants_usage=asked.wants_usage,
        )
        if asked.stream:
            return EventStreamResponse(completion.chunks(), completion.close)
        return LateResponse(completion.whole, completion.close)


class ModelsView(CompatibleView):
    @extend_schema(operation_id="models_list", responses={200: ModelList})
    def get(self, request: Request) -> Response:
        """List the tenant's agents that answer, as models."""
        models = [_model(agent) for agent in published_agents()]
        return Response({"object": "list", "data": models})


class ModelView(CompatibleView):
    @extend_schema(operation_id="models_retrieve", responses={200: Model})
    def get(self, request: Request, model: str) -> Response:
        """One agent, by its id or its slug, as a model."""
        return Response({**_model(published_named(model)), "id": model})


class NoSuchView(CompatibleView):
    """What else the OpenAI API has: refused in the shape of the rest."""

    @extend_schema(exclude=True)
    def get(self, request: Request, rest: str) -> Response:
        raise NotFound()

    post = put = patch = delete = get


def _model(agent: PublishedAgent) -> dict[str, Any]:
    return {
        "id": agent.slug,
        "object": "model",
        "created": int(agent.created_at.timestamp()),
        "owned_by": current_tenant_id(),
    }
