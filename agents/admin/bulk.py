"""Mass updates: one form for the agents that are selected in the list, and a page of how far it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import flatten
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.text import capfirst
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from pydantic import ValidationError
from unfold.widgets import (
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from agents.admin.config_form import CONFIG_FIELDS, CONFIG_FIELDSETS, PREFIX
from agents.admin.pages import AgentPages
from agents.bulk_actions import MOST_NAMED, AgentAskBulkUpdateAction, AgentBulkUpdateAction
from agents.bulk_selectors import bulk_counts, bulk_items
from agents.config import AgentConfig
from agents.models import Agent
from core.actions.bus import execute
from core.actions.tasks import TaskCancelAction
from core.admin.console import actor_of, counted, show_refusal
from core.admin.forms import TextField, YesOrNoField, given_in
from core.admin.tasks import COLOURS
from core.api.errors import named
from core.errors import NoobleError, TaskNotFound, ValidationFailed
from core.ids import parse_uuid
from core.models import Task
from core.models.task import TaskStatus
from core.tenancy import tenant_scope

NAMED = 20  # agents that the form names
RESULTS = 100  # a page


def _may_stay(field: forms.Field) -> forms.Field:
    """The field of one agent's form as one that, left empty, changes nothing."""
    if isinstance(field, forms.BooleanField):
        return YesOrNoField(label=field.label, required=False)
    field = copy.deepcopy(field)
    field.required, field.initial, field.help_text = False, None, ""
    if isinstance(field, forms.ChoiceField):
        choices: Any = field.choices
        field.choices = list({"": "-", **dict(choices)}.items())
    return field


BulkConfigFields = type(
    "BulkConfigFields", (forms.Form,), {name: _may_stay(field) for name, field in CONFIG_FIELDS.items()}
)


class BulkForm(BulkConfigFields):  # type: ignore[misc, valid-type]
    """What shall become different of every agent; `changes` are those of the action, after `is_valid`."""

    # Ids with commas between them: one field, however many they are.
    agents = forms.CharField(widget=forms.HiddenInput)
    type = forms.CharField(label=capfirst(_("type")), required=False, widget=UnfoldAdminTextInputWidget)
    status = forms.ChoiceField(
        label=capfirst(_("status")),
        required=False,
        choices=[("", "-"), *Agent.Status.choices],
        widget=UnfoldAdminSelectWidget,
    )
    description = TextField(
        label=capfirst(_("description")), required=False, widget=UnfoldAdminTextareaWidget({"rows": 3})
    )
    note = forms.CharField(
        label=_("Note"),
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text=_("Why the configuration is changed: the version keeps it."),
    )
    hold = forms.BooleanField(
        label=_("Publish later"),
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text=_("A published agent goes on with its published version until you publish the new one."),
    )

    def sections(self) -> Iterator[tuple[Any, list[forms.BoundField]]]:
        """The fields as the page groups them."""
        yield _("Agent"), [self[name] for name in ("type", "status", "description")]
        for title, options in CONFIG_FIELDSETS:
            fields: Any = options["fields"]
            yield title, [self[name] for name in flatten(fields)]
        yield _("This change"), [self["note"], self["hold"]]

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or self.cleaned_data
        self.changes: dict[str, Any] = {
            name: given[name] for name in ("type", "description") if given.get(name)
        }
        if given.get("status"):
            self.changes["draft"] = given["status"] == Agent.Status.DRAFT
        config = given_in(self, AgentConfig, PREFIX)
        if config:
            self.changes["config"] = config
        if not self.changes and not self.errors:
            raise forms.ValidationError(_("Fill in what shall become different."))
        return given

    def action(self, actor: str) -> AgentAskBulkUpdateAction:
        """Raises pydantic's ValidationError."""
        given = self.cleaned_data
        changes = {**self.changes, "publish": False} if given["hold"] else self.changes
        names = tuple(given["agents"].split(","))
        fields: dict[str, Any] = {"changes": changes, "agents": names, "note": given["note"]}
        return AgentAskBulkUpdateAction(**fields, actor=actor)


class BulkPages(AgentPages):
    """Mass updates. Who may change agents asks for them and cancels them, who sees agents sees them."""

    actions = ("change_several",)

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view
        return [
            path("several/", view(self.bulk_form), name="agents_agent_bulk"),
            path("several/<uuid:task_id>/", view(self.bulk_page), name="agents_agent_bulk_task"),
            path(
                "several/<uuid:task_id>/figures/", view(self.bulk_figures), name="agents_agent_bulk_figures"
            ),
            path("several/<uuid:task_id>/cancel/", view(self.bulk_cancel), name="agents_agent_bulk_cancel"),
            *super().get_urls(),
        ]

    @admin.action(description=_("Change several agents"), permissions=["change"])
    def change_several(self, request: HttpRequest, rows: QuerySet[Agent]) -> HttpResponse | None:
        """To the form, with the selection in it."""
        if rows.filter(deleted_at__isnull=False).exists():
            told = gettext("Deleted agents do not change: restore them first.")
        elif self._tenant_of(rows) is None:
            told = gettext("Choose agents of one tenant: a mass update is a tenant's own.")
        elif rows.count() > MOST_NAMED:
            told = gettext("Choose at most %(count)s agents.") % {"count": counted(MOST_NAMED)}
        else:
            ids = ",".join(str(pk) for pk in rows.values_list("pk", flat=True))
            return self._bulk_form(request, rows, BulkForm(initial={"agents": ids}))
        self.message_user(request, told, messages.ERROR)
        return None

    def bulk_form(self, request: HttpRequest) -> HttpResponse:
        """The form comes back here; without a selection there is none."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        ids = [parse_uuid(text) for text in request.POST.get("agents", "").split(",")]
        rows = self.get_queryset(request).filter(pk__in=[pk for pk in ids if pk is not None])
        tenant_id = self._tenant_of(rows)
        if tenant_id is None:
            return HttpResponseRedirect(reverse("admin:agents_agent_changelist"))
        form = BulkForm(request.POST)
        if form.is_valid():
            try:
                with tenant_scope(tenant_id):
                    asked = execute(form.action(actor_of(request)))
            except (NoobleError, ValidationError) as error:
                show_refusal(form, _without_place(named(error)))
            else:
                return HttpResponseRedirect(reverse("admin:agents_agent_bulk_task", args=[asked.task_id]))
        return self._bulk_form(request, rows, form)

    def bulk_page(self, request: HttpRequest, task_id: Any) -> HttpResponse:
        """How far it is, and what became of each agent."""
        task = self._bulk_task(request, task_id)
        if task is None:
            return self._no_bulk(request)
        return self._page(request, "bulk_task", None, title=_("Mass update"), **self._figures(request, task))

    def bulk_figures(self, request: HttpRequest, task_id: Any) -> HttpResponse:
        """What the page replaces every two seconds."""
        task = self._bulk_task(request, task_id)
        if task is None:
            return self._no_bulk(request)
        return TemplateResponse(request, "agents/admin/bulk_figures.html", self._figures(request, task))

    def bulk_cancel(self, request: HttpRequest, task_id: Any) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        task = self._bulk_task(request, task_id)
        if task is None:
            return self._no_bulk(request)
        if not self.has_verb_permission(request):
            raise PermissionDenied
        try:
            with tenant_scope(task.tenant_id):
                execute(TaskCancelAction(task_id=task.pk, by=actor_of(request)))
        except NoobleError as error:
            self._tell(request, error)
        else:
            told = _("It stops; what is changed stays changed.")
            self.message_user(request, told, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:agents_agent_bulk_task", args=[task.pk]))

    def _bulk_form(self, request: HttpRequest, rows: QuerySet[Agent], form: BulkForm) -> HttpResponse:
        count = rows.count()
        context = {
            "form": form,
            "media": self.media + form.media,
            "title": _("Change several agents"),
            "count": count,
            "named": rows[:NAMED],
            "more": max(count - NAMED, 0),
            "tenant": self._tenant_of(rows),
        }
        return self._page(request, "bulk", None, **context)

    def _tenant_of(self, rows: QuerySet[Agent]) -> str | None:
        """The tenant whose agents all of them are; None when there is no such one."""
        tenants = list(rows.order_by().values_list("tenant_id", flat=True).distinct()[:2])
        return tenants[0] if len(tenants) == 1 else None

    def _bulk_task(self, request: HttpRequest, task_id: Any) -> Task | None:
        if not self.has_view_permission(request):
            raise PermissionDenied
        found: Task | None = Task.unscoped.filter(pk=task_id, action=AgentBulkUpdateAction.verb).first()
        return found

    def _no_bulk(self, request: HttpRequest) -> HttpResponse:
        self.message_user(request, str(TaskNotFound()), messages.ERROR)
        return HttpResponseRedirect(reverse("admin:agents_agent_changelist"))

    def _figures(self, request: HttpRequest, task: Task) -> dict[str, Any]:
        with tenant_scope(task.tenant_id):
            counts = bulk_counts(task)
            # Failures first: they are what somebody has to look at.
            done = bulk_items(task).filter(ok__isnull=False).order_by("ok", "position")
            page = Paginator(done, RESULTS).get_page(request.GET.get("p"))
            items = list(page.object_list)
            agents = Agent.objects.filter(pk__in=[item.agent_id for item in items])
            names = dict(agents.values_list("pk", "name"))
        return {
            "task": task,
            "colour": COLOURS[TaskStatus(task.status)],
            "over": task.is_final or task.status == TaskStatus.CANCELLING,
            "counts": counts,
            "page": page,
            "results": [
                {"item": item, "name": names.get(item.agent_id), "reasons": _reasons(item.error)}
                for item in items
            ],
            "may_cancel": self.has_verb_permission(request),
        }


def _reasons(error: dict[str, Any] | None) -> list[str]:
    """Why the agent was refused, as the API tells it."""
    if error is None:
        return []
    return [error["message"], *(f"{field}: {reason}" for field, reason in error["details"].items())]


def _without_place(error: NoobleError) -> NoobleError:
    """In the API the form's fields are inside `changes`."""
    if not isinstance(error, ValidationFailed):
        return error
    return ValidationFailed(
        details={place.removeprefix("changes."): reason for place, reason in error.details.items()}
    )
