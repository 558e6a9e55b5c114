"""Budgets over HTTP."""

from __future__ import annotations

import uuid

from drf_spectacular.utils import extend_schema
from pydantic import BaseModel
from rest_framework.request import Request
from rest_framework.response import Response

from core.actions.bus import execute
from core.api.pages import PAGE, cursor_of, limit_of
from core.api.views import KeyView
from core.ids import parse_uuid
from execution.budget_actions import (
    BudgetCreate,
    BudgetCreateAction,
    BudgetDeleteAction,
    BudgetResource,
    BudgetUpdate,
    BudgetUpdateAction,
)
from execution.budget_selectors import budget_get, budget_list, budget_resource, budget_resources
from execution.errors import BudgetNotFound


class BudgetList(BaseModel):
    """A page of budgets; `next` is the cursor of the following one, or null."""

    items: list[BudgetResource]
    next: str | None


class BudgetsView(KeyView):
    area = "usage"

    @extend_schema(
        operation_id="budgets_list",
        parameters=[*PAGE],
        responses={200: BudgetList},
    )
    def get(self, request: Request) -> Response:
        """List the tenant's budgets and what their present periods have seen, oldest first."""
        limit = limit_of(request)
        found = budget_list(cursor_of(request), limit + 1)
        following = str(found[limit - 1].pk) if len(found) > limit else None
        items = [resource.model_dump(mode="json") for resource in budget_resources(found[:limit])]
        return Response({"items": items, "next": following})

    @extend_schema(operation_id="budgets_create", request=BudgetCreate, responses={201: BudgetResource})
    def post(self, request: Request) -> Response:
        """Bound what the tenant, an agent or an end user may use in a day, a month or in total."""
        made = execute(BudgetCreateAction(**self.fields(request, BudgetCreate)))
        return Response(made.model_dump(mode="json"), status=201)


class BudgetView(KeyView):
    area = "usage"

    @extend_schema(operation_id="budgets_read", responses={200: BudgetResource})
    def get(self, request: Request, budget_id: str) -> Response:
        """Read a budget and what its present period has seen."""
        return Response(budget_resource(budget_get(_pk(budget_id))).model_dump(mode="json"))

    @extend_schema(operation_id="budgets_update", request=BudgetUpdate, responses={200: BudgetResource})
    def patch(self, request: Request, budget_id: str) -> Response:
        """Change the limits; null is none. What is used stays used."""
        fields = self.fields(request, BudgetUpdate)
        changed = execute(BudgetUpdateAction(**fields, budget_id=_pk(budget_id)))
        return Response(changed.model_dump(mode="json"))

    @extend_schema(operation_id="budgets_delete", responses={204: None})
    def delete(self, request: Request, budget_id: str) -> Response:
        """Lift a budget."""
        execute(BudgetDeleteAction(budget_id=_pk(budget_id)))
        return Response(status=204)


def _pk(text: str) -> uuid.UUID:
    pk = parse_uuid(text)
    if pk is None:
        raise BudgetNotFound()
    return pk
