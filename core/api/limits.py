"""What clients are told of their limits, and the limit of pages that belong to no tenant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from django.http import HttpRequest, HttpResponse

from core.api.errors import refused
from core.api.views import ApiView
from core.errors import RateLimited
from core.ratelimits import Standing, count_stranger, counting


class RateLimitMiddleware:
    """Counts pages by their visitors' addresses; the API's views count themselves (`core.ratelimits`).

    Whatever was counted is told: by `RateLimit` and `RateLimit-Policy`, as the IETF's draft has them
    (draft-ietf-httpapi-ratelimit-headers), and of the tightest limit by the `X-RateLimit-*` that most clients
    read; under `/v1/` also by the names that OpenAI's have. What is limited by nothing says nothing.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        with counting() as counted:
            response = self.get_response(request)
        if counted.standings:
            for name, value in told(counted.standings, request.path_info).items():
                response[name] = value
        return response

    def process_view(self, request: HttpRequest, view: Any, *_: Any) -> HttpResponse | None:
        if issubclass(getattr(view, "cls", object), ApiView):
            return None
        try:
            count_stranger()
        except RateLimited as error:
            return refused(request, error)
        return None


def told(standings: Sequence[Standing], path: str) -> dict[str, str]:
    """The headers."""
    policies, lefts = [], []
    for standing in standings:
        name = f'"{standing.limit.namespace}"'
        policies.append(f"{name};q={standing.limit.amount};w={standing.limit.get_expiry()}")
        lefts.append(f"{name};r={standing.left};t={math.ceil(standing.reset)}")
    tightest = min(standings, key=lambda standing: (standing.passes, standing.left / standing.limit.amount))
    amount, left, reset = tightest.limit.amount, tightest.left, math.ceil(tightest.reset)
    headers = {
        "RateLimit-Policy": ", ".join(policies),
        "RateLimit": ", ".join(lefts),
        "X-RateLimit-Limit": str(amount),
        "X-RateLimit-Remaining": str(left),
        "X-RateLimit-Reset": str(reset),
    }
    if path.startswith("/v1/"):
        headers |= {
            "X-RateLimit-Limit-Requests": str(amount),
            "X-RateLimit-Remaining-Requests": str(left),
            "X-RateLimit-Reset-Requests": f"{reset}s",
        }
    return headers
