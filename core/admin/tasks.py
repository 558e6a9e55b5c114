"""Tasks: look, cancel, retry."""

from __future__ import annotations

import datetime
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    ChoicesCheckboxFilter,
    DropdownFilter,
)

from core.actions.registry import all_handlers
from core.actions.tasks import TaskCancelAction, TaskRetryAction
from core.admin.console import LookOnly, Verb, VerbAdmin, display, duration, link, moment, pretty
from core.ids import parse_uuid
from core.models import Task
from core.models.membership import Role
from core.models.task import CLAIMABLE, RUNNING, TaskStatus
from core.queues.names import DOMAINS

COLOURS = {
    TaskStatus.PENDING: "info",
    TaskStatus.QUEUED: "info",
    TaskStatus.PROCESSING: "primary",
    TaskStatus.WAITING: "warning",
    TaskStatus.CANCELLING: "warning",
    TaskStatus.COMPLETED: "success",
    TaskStatus.FAILED: "danger",
    TaskStatus.CANCELLED: "default",
}


def duration_shown(task: Task) -> str:
    """How long the last attempt took, or has been taking."""
    if task.started_at is None:
        return "-"
    span: datetime.timedelta = (task.finished_at or timezone.now()) - task.started_at
    return duration(span.total_seconds())


class QueueDomainFilter(DropdownFilter):  # type: ignore[misc]
    title = _("queue domain")
    parameter_name = "domain"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(domain, domain) for domain in DOMAINS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Task]) -> QuerySet[Task]:
        return queryset.filter(queue__startswith=f"{self.value()}:") if self.value() else queryset


class ActionFilter(DropdownFilter):  # type: ignore[misc]
    title = _("action")
    parameter_name = "verb"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        # From the registry: asking the table for its values would read all of it.
        return [(item.action.verb, item.action.verb) for item in all_handlers() if item.action.queue]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Task]) -> QuerySet[Task]:
        return queryset.filter(action=self.value()) if self.value() else queryset


@admin.register(Task)
class TaskAdmin(LookOnly, VerbAdmin):
    changed_by = Role.EDITOR
    list_display = (
        "id_shown",
        "status_shown",
        "action",
        "tenant",
        "session_shown",
        "created",
        "duration",
        "attempt",
    )
    list_select_related = ("tenant",)
    list_filter = (
        ("status", ChoicesCheckboxFilter),
        ("tenant", AutocompleteSelectFilter),
        QueueDomainFilter,
        ActionFilter,
    )
    search_fields = ("session_id",)
    search_help_text = _("A task's or a session's whole id")
    ordering = ("-pk",)  # the key counts milliseconds: newest first, by an index
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("status", "attempt", "crashes"),
                    ("action", "duration"),
                    ("tenant", "queue"),
                    ("session_shown", "agent_shown"),
                    ("root_shown", "retry_shown"),
                    "priority",
                )
            },
        ),
        (
            _("Times"),
            {
                "fields": (
                    ("created", "started"),
                    ("finished", "cancelled"),
                    "cancelled_by",
                    ("lease", "run_deadline"),
                    ("earliest", "serial_key"),
                )
            },
        ),
        (_("Outcome"), {"fields": ("error_shown", "result_shown")}),
        (_("Work"), {"fields": ("payload_shown", "callback_shown")}),
    )
    verbs = (
        Verb(
            "cancel",
            _("Cancel"),
            "cancel",
            lambda task, actor: TaskCancelAction(task_id=task.pk, by=actor),
            lambda task: not task.is_final and task.status != TaskStatus.CANCELLING,
            variant="danger",
        ),
        Verb(
            "retry",
            _("Retry"),
            "replay",
            lambda task, actor: TaskRetryAction(task_id=task.pk),
            lambda task: task.is_final,
            variant="primary",
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Task]:
        rows: QuerySet[Task] = super().get_queryset(request)
        if request.resolver_match and request.resolver_match.url_name == "core_task_changelist":
            return rows.defer("payload", "callback", "result", "error")
        return rows

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Task], search_term: str
    ) -> tuple[QuerySet[Task], bool]:
        """Whole ids only: searching for parts of them would read the whole table."""
        term = search_term.strip()
        if not term:
            return queryset, False
        task_id = parse_uuid(term)
        return (queryset.filter(pk=task_id) if task_id else queryset.filter(session_id=term)), False

    def done(self, obj: Task, verb: Verb, result: Any) -> Any:
        if verb.name == "retry":
            again = link("admin:core_task_change", result.task_id, result.task_id)
            return format_html("{} {}", _("Tried again as task"), again)
        if result.status == TaskStatus.CANCELLING:
            return _("Task %(id)s is being cancelled") % {"id": obj.pk}
        return _("Task %(id)s: cancelled") % {"id": obj.pk}

    @display(_("id"), ordering="pk")
    def id_shown(self, task: Task) -> str:
        """Its random end: the beginning is the time, which has a column of its own."""
        return str(task.pk)[-12:]

    @display(_("status"), ordering="status", label=COLOURS)
    def status_shown(self, task: Task) -> tuple[str, str]:
        return task.status, task.get_status_display()

    @display(_("duration"))
    def duration(self, task: Task) -> str:
        return duration_shown(task)

    @display(_("created at"), ordering="pk")
    def created(self, task: Task) -> str:
        return moment(task.created_at)

    @display(_("started at"))
    def started(self, task: Task) -> str:
        return moment(task.started_at)

    @display(_("finished at"))
    def finished(self, task: Task) -> str:
        return moment(task.finished_at)

    @display(_("cancelled at"))
    def cancelled(self, task: Task) -> str:
        return moment(task.cancelled_at)

    @display(_("lease until"))
    def lease(self, task: Task) -> str:
        """Until when its worker need not say that it lives; of a task that runs."""
        return moment(task.lease_until if task.status in RUNNING else None)

    @display(_("deadline"))
    def run_deadline(self, task: Task) -> str:
        return moment(task.deadline if task.status in RUNNING else None)

    @display(_("not before"))
    def earliest(self, task: Task) -> str:
        return moment(task.not_before if task.status in CLAIMABLE else None)

    @display(_("session"))
    def session_shown(self, task: Task) -> Any:
        if not task.session_id:
            return "-"
        query = f"?tenant__id__exact={task.tenant_id}&key__exact={task.session_id}"
        return link("admin:conversations_session_changelist", task.session_id, query=query)

    @display(_("agent"))
    def agent_shown(self, task: Task) -> Any:
        return link("admin:agents_agent_change", task.agent_id, task.agent_id) if task.agent_id else "-"

    @display(_("root task"))
    def root_shown(self, task: Task) -> Any:
        if task.global_task_id == task.pk:
            return "-"
        return link("admin:core_task_change", task.global_task_id, task.global_task_id)

    @display(_("retry of"))
    def retry_shown(self, task: Task) -> Any:
        return link("admin:core_task_change", task.retry_of_id, task.retry_of_id) if task.retry_of_id else "-"

    @display(_("payload"))
    def payload_shown(self, task: Task) -> Any:
        return pretty(task.payload)

    @display(_("callback"))
    def callback_shown(self, task: Task) -> Any:
        return pretty(task.callback)

    @display(_("result"))
    def result_shown(self, task: Task) -> Any:
        return pretty(task.result)

    @display(_("error"))
    def error_shown(self, task: Task) -> Any:
        return pretty(task.error)
