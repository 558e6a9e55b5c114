"""What a browser may do with our pages."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse


class ContentPolicyMiddleware:
    """Gives every HTML page that has none of its own a Content-Security-Policy: see `CONTENT_POLICIES`.

    A script that got into a page nevertheless, by a model's answer or a name, is not run, and nothing is
    fetched from elsewhere.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if response.get("Content-Type", "").startswith("text/html"):
            policies = settings.CONTENT_POLICIES.items()
            response.headers.setdefault(
                "Content-Security-Policy",
                next(policy for start, policy in policies if request.path_info.startswith(start)),
            )
        return response
