"""Webhooks over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from core.actions.bus import execute
from core.api.pages import PAGE, cursor_of, limit_of
from core.api.views import KeyView
from core.errors import ValidationFailed
from core.ids import parse_uuid
from orchestrator.actions import (
    DeliveryResource,
    WebhookCreate,
    WebhookCreateAction,
    WebhookDeleteAction,
    WebhookReplayAction,
    WebhookResource,
    WebhookRotateAction,
    WebhookUpdate,
    WebhookUpdateAction,
)
from orchestrator.errors import DeliveryNotFound, WebhookNotFound
from orchestrator.models import Delivery
from orchestrator.selectors import (
    delivery_list,
    delivery_resource,
    webhook_get,
    webhook_list,
    webhook_resource,
)
from orchestrator.serializers import DeliveryList, WebhookList


def _shown(resource: Any) -> dict[str, Any]:
    body: dict[str, Any] = resource.model_dump(mode="json", exclude_unset=True)
    return body


def _webhook_id(text: str) -> uuid.UUID:
    found = parse_uuid(text)
    if found is None:
        raise WebhookNotFound()
    return found


class WebhooksView(KeyView):
    area = "webhooks"

    @extend_schema(operation_id="webhooks_list", parameters=[*PAGE], responses={200: WebhookList})
    def get(self, request: Request) -> Response:
        """List the tenant's webhooks, oldest first."""
        limit = limit_of(request)
        endpoints = webhook_list(cursor_of(request), limit + 1)
        following = str(endpoints[limit - 1].pk) if len(endpoints) > limit else None
        items = [_shown(webhook_resource(endpoint)) for endpoint in endpoints[:limit]]
        return Response({"items": items, "next": following})

    @extend_schema(operation_id="webhooks_create", request=WebhookCreate, responses={201: WebhookResource})
    def post(self, request: Request) -> Response:
        """Create a webhook. The answer has its `secret`, which nobody can read again."""
        fields = self.fields(request, WebhookCreate)
        return Response(_shown(execute(WebhookCreateAction(**fields))), status=201)


class WebhookView(KeyView):
    area = "webhooks"

    @extend_schema(operation_id="webhooks_read", responses={200: WebhookResource})
    def get(self, request: Request, webhook_id: str) -> Response:
        """Read a webhook."""
        return Response(_shown(webhook_resource(webhook_get(_webhook_id(webhook_id)))))

    @extend_schema(operation_id="webhooks_update", request=WebhookUpdate, responses={200: WebhookResource})
    def patch(self, request: Request, webhook_id: str) -> Response:
        """Change a webhook, disable or enable it. What waits for one that is disabled is dead."""
        fields = self.fields(request, WebhookUpdate)
        return Response(_shown(execute(WebhookUpdateAction(**fields, webhook_id=_webhook_id(webhook_id)))))

    @extend_schema(operation_id="webhooks_delete", responses={204: None})
    def delete(self, request: Request, webhook_id: str) -> Response:
        """Delete a webhook with its deliveries."""
        execute(WebhookDeleteAction(webhook_id=_webhook_id(webhook_id)))
        return Response(status=204)


class WebhookRotateView(KeyView):
    area = "webhooks"

    @extend_schema(operation_id="webhooks_rotate", request=None, responses={200: WebhookResource})
    def post(self, request: Request, webhook_id: str) -> Response:
        """Make a new secret, shown this once. For 24 hours the former one signs beside it."""
        return Response(_shown(execute(WebhookRotateAction(webhook_id=_webhook_id(webhook_id)))))


class DeliveriesView(KeyView):
    area = "webhooks"

    @extend_schema(
        operation_id="webhooks_deliveries",
        parameters=[*PAGE, OpenApiParameter("status", str, enum=Delivery.Status.values)],
        responses={200: DeliveryList},
    )
    def get(self, request: Request, webhook_id: str) -> Response:
        """List what was sent to a webhook and what came of it, newest first."""
        endpoint = webhook_get(_webhook_id(webhook_id))
        limit = limit_of(request)
        status = request.query_params.get("status")
        if status is not None and status not in Delivery.Status.values:
            raise ValidationFailed(details={"status": f"one of {', '.join(Delivery.Status.values)}"})
        deliveries = delivery_list(endpoint, cursor_of(request), status, limit + 1)
        following = str(deliveries[limit - 1].pk) if len(deliveries) > limit else None
        items = [_shown(delivery_resource(delivery)) for delivery in deliveries[:limit]]
        return Response({"items": items, "next": following})


class ReplayView(KeyView):
    area = "webhooks"

    @extend_schema(operation_id="webhooks_replay", request=None, responses={202: DeliveryResource})
    def post(self, request: Request, delivery_id: str) -> Response:
        """Deliver once more, now, with the same `webhook-id`."""
        found = parse_uuid(delivery_id)
        if found is None:
            raise DeliveryNotFound()
        return Response(_shown(execute(WebhookReplayAction(delivery_id=found))), status=202)
