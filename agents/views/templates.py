"""Templates over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from pydantic import BaseModel
from rest_framework.request import Request
from rest_framework.response import Response

from agents.actions import AgentResource
from agents.errors import TemplateNotFound
from agents.template_actions import (
    LONGEST_CATEGORY,
    TemplateCreate,
    TemplateCreateAction,
    TemplateDeleteAction,
    TemplateInstantiate,
    TemplateInstantiateAction,
    TemplateResource,
    TemplateUpdate,
    TemplateUpdateAction,
)
from agents.template_selectors import template_get, template_list, template_resource
from agents.views.base import answer
from core.actions.bus import execute
from core.api.pages import PAGE, cursor_of, limit_of, text_of
from core.api.views import KeyView
from core.ids import parse_uuid


class TemplateList(BaseModel):
    """A page of templates; `next` is the cursor of the following one, or null."""

    items: list[TemplateResource]
    next: str | None


class TemplatesView(KeyView):
    area = "agents"

    @extend_schema(
        operation_id="templates_list",
        parameters=[
            *PAGE,
            OpenApiParameter("category", {"type": "string", "maxLength": LONGEST_CATEGORY}),
        ],
        responses={200: TemplateList},
    )
    def get(self, request: Request) -> Response:
        """List the tenant's templates and everybody's, oldest first."""
        limit = limit_of(request)
        rows = template_list(cursor_of(request), limit + 1, text_of(request, "category", LONGEST_CATEGORY))
        following = str(rows[limit - 1].pk) if len(rows) > limit else None
        return Response({"items": [_body(template_resource(row)) for row in rows[:limit]], "next": following})

    @extend_schema(operation_id="templates_create", request=TemplateCreate, responses={201: TemplateResource})
    def post(self, request: Request) -> Response:
        """Create a template of the tenant's own."""
        fields = self.fields(request, TemplateCreate)
        return Response(_body(execute(TemplateCreateAction(**fields))), status=201)


class TemplateView(KeyView):
    area = "agents"

    @extend_schema(operation_id="templates_read", responses={200: TemplateResource})
    def get(self, request: Request, template_id: str) -> Response:
        """Read a template."""
        return Response(_body(template_resource(template_get(_uuid(template_id)))))

    @extend_schema(operation_id="templates_update", request=TemplateUpdate, responses={200: TemplateResource})
    def patch(self, request: Request, template_id: str) -> Response:
        """Change a template of the tenant's own. Agents made from it stay as they are, and tell of it."""
        fields = self.fields(request, TemplateUpdate)
        action = TemplateUpdateAction(**fields, template_id=_uuid(template_id))
        return Response(_body(execute(action)))

    @extend_schema(operation_id="templates_delete", responses={204: None})
    def delete(self, request: Request, template_id: str) -> Response:
        """Delete a template of the tenant's own."""
        execute(TemplateDeleteAction(template_id=_uuid(template_id)))
        return Response(status=204)


class TemplateInstantiateView(KeyView):
    area = "agents"

    @extend_schema(
        operation_id="templates_instantiate", request=TemplateInstantiate, responses={201: AgentResource}
    )
    def post(self, request: Request, template_id: str) -> Response:
        """Create an agent from a template: its variables filled in, `config` merged over it."""
        fields = self.fields(request, TemplateInstantiate)
        action = TemplateInstantiateAction(
            **fields, template_id=_uuid(template_id), actor=self.actor(request)
        )
        return answer(execute(action), status=201)


def _body(resource: BaseModel) -> dict[str, Any]:
    return resource.model_dump(mode="json")


def _uuid(text: str) -> uuid.UUID:
    found = parse_uuid(text)
    if found is None:
        raise TemplateNotFound()
    return found
