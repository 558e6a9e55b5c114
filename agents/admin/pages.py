"""Pages of an agent beside its form: compare and roll back versions, export, import."""

from __future__ import annotations

from typing import Any

import orjson
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from pydantic import ValidationError

from agents.actions import AgentImportAction, AgentRollbackAction
from agents.admin.forms import ImportForm
from agents.errors import VersionNotFound
from agents.models import Agent, AgentVersion
from agents.selectors import agent_document, version_changes, version_get
from core.actions.bus import execute
from core.admin.console import VerbAdmin, actor_of, shown_changes
from core.api.errors import named
from core.api.parsers import MAX_IMPORT
from core.errors import NoobleError
from core.tenancy import tenant_scope


class AgentPages(VerbAdmin):
    """What an agent's page leads to. A person sees and does here what the permissions of agents say."""

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view
        return [
            path("import/", view(self.import_page), name="agents_agent_import"),
            path("<uuid:agent_id>/compare/", view(self.compare_page), name="agents_agent_compare"),
            path("<uuid:agent_id>/rollback/", view(self.rollback), name="agents_agent_rollback"),
            path("<uuid:agent_id>/export/", view(self.export), name="agents_agent_export"),
            *super().get_urls(),
        ]

    def compare_page(self, request: HttpRequest, agent_id: Any) -> HttpResponse:
        """Two versions side by side: those of the address, else the last two."""
        agent = self._agent(request, agent_id)
        if agent is None:
            return self._gone(request, agent_id)
        assert agent.version is not None
        newest = agent.version.number
        numbers = {
            "from": _number(request.GET.get("from"), max(newest - 1, 1)),
            "to": _number(request.GET.get("to"), newest),
        }
        context: dict[str, Any] = {"numbers": numbers, "newest": newest, "title": _("Compare versions")}
        try:
            with tenant_scope(agent.tenant_id):
                before, after = (version_get(agent, number) for number in numbers.values())
        except VersionNotFound as error:
            context["error"] = str(error)
        else:
            context |= {"versions": (before, after), "changes": shown_changes(version_changes(before, after))}
            context["back_to"] = [
                version for version in _distinct(before, after) if version.number != newest
            ] * self.has_verb_permission(request)
        return self._page(request, "compare", agent, **context)

    def rollback(self, request: HttpRequest, agent_id: Any) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        agent = self._agent(request, agent_id)
        if agent is None:
            return self._gone(request, agent_id)
        if not self.has_verb_permission(request):
            raise PermissionDenied
        number, note = _number(request.POST.get("version"), 0), request.POST.get("note", "")
        try:
            with tenant_scope(agent.tenant_id):
                fields = {"version": number, "note": note, "actor": actor_of(request)}
                result = execute(AgentRollbackAction(agent_id=agent.pk, **fields))
        except (NoobleError, ValidationError) as error:
            self._tell(request, error)
        else:
            words = {"old": number, "new": result.version}
            told = gettext("Version %(new)s has the configuration of version %(old)s.") % words
            self.log_change(request, agent, told)
            self.message_user(request, told, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:agents_agent_change", args=[agent.pk]))

    def export(self, request: HttpRequest, agent_id: Any) -> HttpResponse:
        agent = self._agent(request, agent_id)
        if agent is None:
            return self._gone(request, agent_id)
        content = orjson.dumps(agent_document(agent).model_dump(mode="json"), option=orjson.OPT_INDENT_2)
        headers = {"Content-Disposition": f'attachment; filename="{agent.slug}.json"'}
        return HttpResponse(content, content_type="application/json", headers=headers)

    def import_page(self, request: HttpRequest) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = self._import_form(request)
        if request.method == "POST":
            try:
                if form.is_valid():
                    return self._imported(request, form)
            except (NoobleError, ValidationError) as error:
                self._tell(request, error)
        return self._page(
            request, "import", None, form=form, media=self.media + form.media, title=_("Import")
        )

    # Bytes of the file, and of the form around it.
    import_page.max_body = MAX_IMPORT + 2**20  # type: ignore[attr-defined]

    def _import_form(self, request: HttpRequest) -> ImportForm:
        form = ImportForm(request.POST or None, request.FILES or None)
        tenant = self.formfield_for_dbfield(Agent._meta.get_field("tenant"), request)
        form.fields = {"tenant": tenant, **form.fields}
        return form

    def _imported(self, request: HttpRequest, form: ImportForm) -> HttpResponse:
        with tenant_scope(form.cleaned_data["tenant"].pk):
            result = execute(AgentImportAction(document=form.document, actor=actor_of(request)))
        agent = Agent.unscoped.get(pk=result.agent_id)
        self.log_addition(request, agent, gettext("Imported"))
        self.message_user(request, gettext("Imported as %(slug)s.") % {"slug": agent.slug}, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:agents_agent_change", args=[agent.pk]))

    def _agent(self, request: HttpRequest, agent_id: Any) -> Agent | None:
        agent: Agent | None = self.get_object(request, str(agent_id))
        if agent is not None and not self.has_view_permission(request, agent):
            raise PermissionDenied
        return agent

    def _gone(self, request: HttpRequest, agent_id: Any) -> HttpResponse:
        back: HttpResponse = self._get_obj_does_not_exist_redirect(request, self.opts, str(agent_id))
        return back

    def _page(self, request: HttpRequest, name: str, agent: Agent | None, **context: Any) -> HttpResponse:
        shared = {**self.admin_site.each_context(request), "opts": self.opts, "agent": agent}
        return TemplateResponse(request, f"agents/admin/{name}.html", {**shared, **context})

    def _tell(self, request: HttpRequest, error: Exception) -> None:
        ours = named(error)
        reasons = "; ".join(f"{field}: {reason}" for field, reason in ours.details.items())
        self.message_user(request, f"{ours} {reasons}", messages.ERROR)


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else default


def _distinct(before: AgentVersion, after: AgentVersion) -> list[AgentVersion]:
    return [before] if before == after else [before, after]
