"""What people open in a browser: the chat page of an agent, and the front page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from django.templatetags.static import static
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from agents.errors import AgentNotFound
from agents.selectors import agent_get, agent_live, agent_version
from core.api.errors import body_of
from core.errors import MethodNotAllowed, Suspended
from core.ids import parse_uuid
from core.origins import as_browsers_write
from core.tenancy import tenant_scope
from orchestrator.views.chat import websocket_url


# Nothing here acts on a cookie: a POST is a wrong method, not a forgery.
@method_decorator(csrf_exempt, name="dispatch")
class PageView(View):
    """A page that runs our own script only, and talks to nobody but us."""

    http_method_names = ["get", "head"]

    def page(
        self,
        request: HttpRequest,
        template: str,
        context: dict[str, Any] | None = None,
        status: int = 200,
        frames: Iterable[str] = (),
    ) -> HttpResponse:
        """The page; besides our own pages those of the origins `frames` may show it inside of them."""
        response = render(request, f"orchestrator/{template}.html", context, status=status)
        response["Content-Security-Policy"] = _policy(request, frames)
        response["X-Frame-Options"] = "SAMEORIGIN"  # for browsers that know no frame-ancestors
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
        except Suspended:
            return self._closed(request, _("This agent is switched off at the moment."))
        access = live.access
        if access.kind == "key":
            return self._closed(request, _("Only software with a key of its owner's talks to this agent."))
        if access.origins and _own_origin(request) not in access.origins:
            return self._closed(request, _("This agent is there for other web pages only."))
        config = {
            "agent_id": str(agent.pk),
            "agent_name": agent.name,
            "sockets": websocket_url(request, f"/ws/{tenant_id}/"),
            # Of the pages around ours, which may tell us who is chatting; null where nobody need say it.
            "signers": sorted(access.origins or {_own_origin(request)}) if access.kind == "signed" else None,
            "strings": _strings(),
        }
        greeting = agent_version(live.version_id).config.greeting
        context = {"agent": agent, "greeting": greeting, "config": json.dumps(config)}
        return self.page(request, "chat", context, frames=sorted(access.origins))

    def _closed(self, request: HttpRequest, reason: str) -> HttpResponse:
        return self.page(request, "closed", {"reason": reason}, status=403)


class FrontPageView(PageView):
    def get(self, request: HttpRequest) -> HttpResponse:
        """Where to go from here."""
        return self.page(request, "front")


class FaviconView(PageView):
    def get(self, request: HttpRequest) -> HttpResponse:
        """For those who ask without having read a page."""
        return HttpResponseRedirect(static("orchestrator/favicon.svg"))


def _own_origin(request: HttpRequest) -> str:
    """How browsers spell the origin of this very page."""
    return as_browsers_write(f"{request.scheme}://{request.get_host()}")


def _policy(request: HttpRequest, frames: Iterable[str]) -> str:
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
            " ".join(("frame-ancestors 'self'", *frames)),
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
        "out_of_budget": _("The budget is used up: the answer was cut short."),
        "empty": _("The answer is empty."),
        "not_sent": _("Not sent: {reason}"),
        "offline": _("the server cannot be reached. Please check your connection."),
        "slow_down": _("too many messages at once. Please try again in {seconds} s."),
        "unavailable": _("the service is busy or being updated. Please try again in a moment."),
        "agent_gone": _("this agent is no longer available."),
        "unexpected": _("something went wrong."),
        "cannot_stop": _("The answer could not be stopped: {reason}"),
        "connecting": _("Connecting…"),
        "unknown": _("this page does not know who you are. Please open it from its own site."),
        "ended": _("The conversation before has ended. What you write now begins a new one."),
        "answer_from": _("{name} answered: {text}"),
    }
