"""What Prometheus scrapes: of the whole platform, in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import AnonymousUser
from django.db import DatabaseError
from django.db.models import Count, Q
from django.db.models.functions import Now
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily as Gauge
from redis import RedisError
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from core import health, metrics
from core.admin.roles import has_role, is_operator, roles_of
from core.api.authentication import SERVICE, ServiceTokenAuthentication, TenantKeyAuthentication
from core.api.views import ApiView
from core.errors import AuthenticationRequired, PermissionRefused
from core.models import ApiKey
from core.models.membership import Role
from core.tenancy import across_tenants
from orchestrator.models import Delivery
from orchestrator.sockets.census import totals

logger = logging.getLogger(__name__)

RIGHT = "usage:read"
# Without a token: people of the console by their session, and in dev anybody.
WHO: Any = [{}, {"serviceToken": []}, {"tenantKey": []}]

Source = Callable[[], Iterable[Metric]]


class MetricsView(ApiView):
    authentication_classes = [ServiceTokenAuthentication, TenantKeyAuthentication]
    callers = f"service token, superusers; of a tenant: its people, its key, `{RIGHT}`; in dev anybody"

    @extend_schema(operation_id="metrics", auth=WHO, responses={(200, "text/plain"): OpenApiTypes.STR})
    def get(self, request: Request) -> HttpResponse:
        """Figures for Prometheus. Totals in dev for anybody, else for the service token and for superusers.

        Those two get the figures of tenants as well; a tenant's key and its people get the tenant's own.
        """
        sources: list[Source] = []
        person: Any = get_user(request._request) if request.auth is None else AnonymousUser()
        sees_all = request.auth == SERVICE or is_operator(person)
        if sees_all or settings.NOOBLE_ENV == "dev":
            sources += [metrics.totals, health.of_queues, _of_sockets, health.of_tasks, _of_deliveries]
        if sees_all:
            sources.append(metrics.of_tenants)
        elif isinstance(request.auth, ApiKey):
            if RIGHT not in request.auth.scopes:
                raise PermissionRefused(details={"scope": RIGHT})
            tenant_id = request.auth.tenant_id
            sources.append(lambda: metrics.of_tenants([tenant_id]))
        elif has_role(person, Role.VIEWER):
            sources.append(lambda: metrics.of_tenants(sorted(roles_of(person))))
        if not sources:
            raise AuthenticationRequired()
        return HttpResponse(metrics.exposed(_all_of(sources)), content_type=metrics.CONTENT_TYPE)

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        """Prometheus asks for formats of its own; all of them can read this one."""
        negotiated: tuple[BaseRenderer, str] = super().perform_content_negotiation(request, force=True)
        return negotiated


def _all_of(sources: Iterable[Source]) -> Iterator[Metric]:
    """What every source tells; one that is away takes only its own families with it."""
    failed = 0
    for source in sources:
        try:
            yield from list(source())
        except (RedisError, DatabaseError, OSError) as error:
            failed += 1
            logger.warning("a part of the metrics is missing: %s", error)
    yield Gauge("nooble_scrape_parts_missing", "Parts of this answer whose service is away", value=failed)


def _of_sockets() -> Iterator[Metric]:
    found = totals()
    yield Gauge("nooble_sockets_open", "Sockets that are open", value=found["connections"])
    yield Gauge("nooble_web_processes", "Web processes that count sockets", value=found["processes"])


def _of_deliveries() -> Iterator[Metric]:
    with across_tenants():
        waiting = Delivery.unscoped.filter(status=Delivery.Status.PENDING)
        found = waiting.aggregate(all=Count("pk"), due=Count("pk", filter=Q(due_at__lte=Now())))
    count = Gauge("nooble_deliveries_waiting", "Webhook deliveries that are not made yet", labels=("state",))
    count.add_metric(("due",), found["due"])
    count.add_metric(("later",), found["all"] - found["due"])
    yield count
