"""What people open in a browser: the chat page of an agent, and the front page."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from django.templatetags.static import static
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views import View
from django.views.decorators.clickjacking import xframe_options_sameorigin
from django.views.decorators.csrf import csrf_exempt

from agents.errors import AgentNotFound
from agents.selectors import agent_get, agent_live, agent_version
from core.api.errors import body_of
from core.errors import MethodNotAllowed
from core.ids import parse_uuid
from core.tenancy import tenant_scope
from orchestrator.views.chat import websocket_url


# Nothing here acts on a cookie: a POST is a wrong method, not a forgery.
@method_decorator([csrf_exempt, xframe_options_sameorigin], name="dispatch")
class PageView(View):
    """A page that runs our own script only, and talks to nobody but us."""

    http_method_names = ["get", "head"]

    def page(
        self, request: HttpRequest, template: str, context: dict[str, Any] | None = None, status: int = 200
    ) -> HttpResponse:
        response = render(request, f"orchestrator/{template}.html", context, status=status)
        response["Content-Security-Policy"] = _policy(request)
        response["Cache-Control"] = "no-cache"
        return response

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        error = MethodNotAllowed()
        body = body_of(error, request.request_id)  # type: ignore[attr-defined]
        return JsonResponse(body, status=error.http_status, headers={"Allow": "GET, HEAD"})


class ChatPageView(PageView):
    def get(self, request: HttpRequest, agent_id: str) -> HttpResponse:
        """Talk to an agent; everything else the page does goes through the public API."""
        pk = parse_uuid(agent_id)
        try:
            if pk is None:
                raise AgentNotFound()
            live = agent_live(pk)
            tenant_id = live.tenant_id
            with tenant_scope(tenant_id):
                agent = agent_get(pk)
        except AgentNotFound:
            return self.page(request, "not_found", status=404)
        config = {
            "agent_id": str(agent.pk),
            "agent_name": agent.name,
            "sockets": websocket_url(request, f"/ws/{tenant_id}/"),
            "strings": _strings(),
        }
        greeting = agent_version(live.version_id).config.greeting
        return self.page(
            request, "chat", {"agent": agent, "greeting": greeting, "config": json.dumps(config)}
        )


class FrontPageView(PageView):
    def get(self, request: HttpRequest) -> HttpResponse:
        """Where to go from here."""
        return self.page(request, "front")


class FaviconView(PageView):
    def get(self, request: HttpRequest) -> HttpResponse:
        """For those who ask without having read a page."""
        return HttpResponseRedirect(static("orchestrator/favicon.svg"))


def _policy(request: HttpRequest) -> str:
    """The Content-Security-Policy. The sockets' host is named because older browsers' 'self' is HTTP only."""
    sockets = urlsplit(websocket_url(request, "/"))
    # The grammar of policies has no IPv6 addresses; there 'self' has to do.
    host = "" if "[" in sockets.netloc else f" {sockets.scheme}://{sockets.netloc}"
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            f"connect-src 'self'{host}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'self'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _strings() -> dict[str, str]:
    """What the page's script says, in the reader's language."""
    return {
        "question": _("You"),
        "stop": _("Stop"),
        "stopping": _("Stopping…"),
        "stopped": _("Stopped"),
        "retry": _("Try again"),
        "failed": _("No answer came."),
        "failed_because": _("No answer came: {reason}"),
        "cut_short": _("The answer reached its greatest length and was cut short."),
        "empty": _("The answer is empty."),
        "not_sent": _("Not sent: {reason}"),
        "offline": _("the server cannot be reached. Please check your connection."),
        "slow_down": _("too many messages at once. Please try again in {seconds} s."),
        "unavailable": _("the service is busy or being updated. Please try again in a moment."),
        "agent_gone": _("this agent is no longer available."),
        "unexpected": _("something went wrong."),
        "cannot_stop": _("The answer could not be stopped: {reason}"),
        "connecting": _("Connecting…"),
        "ended": _("The conversation before has ended. What you write now begins a new one."),
        "answer_from": _("{name} answered: {text}"),
    }
