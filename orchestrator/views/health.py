"""Is it up, and does work get through."""

from __future__ import annotations

import redis
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from core import health
from core.api.errors import body_of
from core.api.views import ApiView
from core.errors import ServiceUnavailable
from orchestrator.sockets.census import totals


class HealthView(ApiView):
    @extend_schema(operation_id="health", auth=[], responses={200: dict})
    def get(self, request: Request) -> Response:
        """This web process answers."""
        return Response({"status": "ok"})


class DetailedHealthView(ApiView):
    @extend_schema(operation_id="health_detailed", auth=[], responses={200: dict, 503: dict})
    def get(self, request: Request) -> Response:
        """The last answer of the probe that walks every domain's queue; 503 when one is too old.

        Each domain has `status`, `last_probe_seconds_ago`, and how many messages of all tenants together
        are `waiting`, `running` and `delayed`; `dead_letters` counts those that no worker could read.
        """
        try:
            healthy, found = health.read()
        except redis.RedisError:
            healthy, found = False, {"components": {}}
        state = {"status": "ok" if healthy else "unavailable", **found}
        if healthy:
            return Response(state)
        error = ServiceUnavailable()
        body = state | body_of(error, request.request_id)  # type: ignore[attr-defined]
        return Response(body, status=503, headers={"Retry-After": str(error.retry_after)})


class SocketStatsView(ApiView):
    @extend_schema(operation_id="socket_stats", auth=[], responses={200: dict})
    def get(self, request: Request) -> Response:
        """How many sockets are open, over all web processes."""
        return Response(totals())
