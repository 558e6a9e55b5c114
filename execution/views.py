"""Tenants' providers, and checks of agents, over HTTP."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from pydantic import BaseModel, ConfigDict
from rest_framework.request import Request
from rest_framework.response import Response

from agents.errors import AgentNotFound
from core.actions.base import ActionResult
from core.actions.bus import execute
from core.api.views import ActionView, KeyView
from core.ids import is_slug, parse_uuid
from execution.actions import (
    AgentAskValidationAction,
    ProviderCheckAction,
    ProviderCreate,
    ProviderCreateAction,
    ProviderDeleteAction,
    ProviderResource,
    ProviderUpdate,
    ProviderUpdateAction,
)
from execution.errors import ProviderNotFound
from execution.selectors import provider_get, provider_list, provider_resource


class ProviderList(BaseModel):
    """All of a tenant's providers; there is no further page."""

    items: list[ProviderResource]
    next: None = None


class Nothing(BaseModel):
    """A body without fields."""

    model_config = ConfigDict(extra="forbid")


class ProvidersView(KeyView):
    area = "agents"

    @extend_schema(operation_id="providers_list", responses={200: ProviderList})
    def get(self, request: Request) -> Response:
        """List the providers that the tenant has registered, by name."""
        return Response({"items": [_body(provider_resource(row)) for row in provider_list()], "next": None})

    @extend_schema(operation_id="providers_create", request=ProviderCreate, responses={201: ProviderResource})
    def post(self, request: Request) -> Response:
        """Register a provider of the tenant's own and check it; the answer says what came of the check."""
        action = ProviderCreateAction(**self.fields(request, ProviderCreate))
        execute(action)
        return Response(_body(execute(ProviderCheckAction(name=action.name))), status=201)


class ProviderView(KeyView):
    area = "agents"

    @extend_schema(operation_id="providers_read", responses={200: ProviderResource})
    def get(self, request: Request, name: str) -> Response:
        """Read a provider; its key is shown by its end only."""
        return Response(_body(provider_resource(provider_get(_name(name)))))

    @extend_schema(operation_id="providers_update", request=ProviderUpdate, responses={200: ProviderResource})
    def patch(self, request: Request, name: str) -> Response:
        """Change a provider's address or key and check it; an empty change checks it again."""
        fields = self.fields(request, ProviderUpdate)
        execute(ProviderUpdateAction(**fields, name=_name(name)))
        return Response(_body(execute(ProviderCheckAction(name=name))))

    @extend_schema(operation_id="providers_delete", responses={204: None})
    def delete(self, request: Request, name: str) -> Response:
        """Forget a provider and its key. One that agents use is not forgotten: 409 names them."""
        execute(ProviderDeleteAction(name=_name(name)))
        return Response(status=204)


class AgentValidateView(KeyView, ActionView):
    area = "agents"

    @extend_schema(operation_id="agents_validate", request=None, responses={202: ActionResult})
    def post(self, request: Request, agent_id: str) -> Response:
        """Have the agent's newest version checked; what is found appears as the agent's `validation`."""
        Nothing(**self.body(request))
        pk = parse_uuid(agent_id)
        if pk is None:
            raise AgentNotFound()
        return self.respond(request, AgentAskValidationAction(agent_id=pk), status=202)


def _body(resource: BaseModel) -> dict[str, Any]:
    return resource.model_dump(mode="json")


def _name(text: str) -> str:
    if not is_slug(text):
        raise ProviderNotFound()
    return text
