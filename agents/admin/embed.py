"""What a web page needs to have an agent in it."""

from __future__ import annotations

import json
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import escape
from django.utils.translation import gettext as _

from agents.admin.pages import AgentPages
from agents.models import Agent
from agents.selectors import AgentAccess, access_of
from core.origins import as_browsers_write

_FRAME = """<iframe src="{origin}/chat/{agent_id}" title="{name}"
  style="border: 0; width: 100%; height: 40rem"></iframe>"""
# The page around the chat answers for who is chatting: it has the token of its own server.
_SIGNER = """<script>
  addEventListener("message", async (event) => {{
    if (event.origin !== {origin} || event.data?.nooble !== "token") return;
    const response = await fetch("/nooble-token"); // of your own server
    event.source.postMessage({{ nooble: "token", token: await response.text() }}, event.origin);
  }});
</script>"""
_BACK_END = """# pip install PyJWT
token = jwt.encode(
    {{"sub": user.id, "exp": int(time.time()) + 600, "aud": ["{agent_id}"]}},
    os.environ["NOOBLE_END_USER_SECRET"],  # nbs_…
    algorithm="HS256",
)"""
_MESSAGE = """const response = await fetch("{origin}/api/v1/chat/message", {{
  method: "POST",
  headers: {{ "Content-Type": "application/json"{header} }},
  body: JSON.stringify({{ agent_id: "{agent_id}", message: "Hello" }}),
}});
const {{ result }} = await response.json(); // result.websocket_url, result.resume_token"""


class EmbedPages(AgentPages):
    """The page with the snippets."""

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.embed_page)
        return [path("<uuid:agent_id>/embed/", view, name="agents_agent_embed"), *super().get_urls()]

    def embed_page(self, request: HttpRequest, agent_id: Any) -> HttpResponse:
        """How the agent gets into a web page, as it is configured now."""
        agent = self._agent(request, agent_id)
        if agent is None:
            return self._gone(request, agent_id)
        assert agent.version is not None
        access = access_of((agent.published or agent.version).config)
        origin = as_browsers_write(f"{request.scheme}://{request.get_host()}")
        context = {"snippets": _snippets(agent, access, origin), "warnings": _warnings(agent, access, origin)}
        return self._page(request, "embed", agent, title=_("Embed"), **context)


def _snippets(agent: Agent, access: AgentAccess, origin: str) -> list[tuple[str, str]]:
    values = {"origin": origin, "agent_id": agent.pk}
    signed = access.kind == "signed"
    token = ', Authorization: "Bearer " + token' if signed else ""
    message = (_("The API, from a page or app of your own"), _MESSAGE.format(**values, header=token))
    if access.kind == "key":
        return []
    frame = (_("The chat page inside of yours"), _FRAME.format(**values, name=escape(agent.name)))
    if not signed:
        return [frame, message]
    return [
        frame,
        (_("Beside it: who is chatting"), _SIGNER.format(origin=json.dumps(origin))),
        (_("Your server: the token"), _BACK_END.format(**values)),
        message,
    ]


def _warnings(agent: Agent, access: AgentAccess, origin: str) -> list[str]:
    """Why the snippets would not work."""
    found = []
    if agent.published is None:
        found.append(_("The agent is a draft: it answers nobody."))
    if access.kind == "key":
        found.append(_("The agent takes keys only, and no page may have one in it: call it from a server."))
    elif not access.origins:
        found.append(
            _("Other sites may show the chat page once their origins are allowed, and %(origin)s with them.")
            % {"origin": origin}
        )
    elif origin not in access.origins:
        found.append(
            _("The chat page is closed: %(origin)s, where it comes from, is not among the allowed origins.")
            % {"origin": origin}
        )
    return found
