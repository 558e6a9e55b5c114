"""Batches in the console: how far each is, its items, cancel, and the results as a file."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.urls import path
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesCheckboxFilter

from core.admin.console import (
    Console,
    LookOnly,
    Verb,
    VerbAdmin,
    counted,
    display,
    duration,
    link,
    moment,
    pretty,
)
from core.ids import parse_uuid
from core.models.membership import Role
from orchestrator.batches.actions import BatchCancelAction
from orchestrator.batches.results import results_file
from orchestrator.models import Batch, BatchItem, BatchStatus, ItemStatus

RESULTS = "orchestrator_batch_results"

COLOURS = {
    BatchStatus.PROCESSING: "primary",
    BatchStatus.CANCELLING: "warning",
    BatchStatus.COMPLETED: "success",
    BatchStatus.CANCELLED: "default",
}
ITEM_COLOURS = {
    ItemStatus.PENDING: "info",
    ItemStatus.PROCESSING: "primary",
    ItemStatus.COMPLETED: "success",
    ItemStatus.FAILED: "danger",
    ItemStatus.CANCELLED: "default",
}


@admin.register(Batch)
class BatchAdmin(LookOnly, VerbAdmin):
    changed_by = Role.EDITOR
    list_display = ("id_shown", "status_shown", "tenant", "progress", "failed", "created", "finished")
    list_select_related = ("tenant",)
    list_filter = (("status", ChoicesCheckboxFilter), ("tenant", AutocompleteSelectFilter))
    search_fields = ("id",)
    search_help_text = _("A batch's whole id")
    ordering = ("-pk",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("id", "status_text"),
                    ("tenant", "agent_shown"),
                    ("progress", "results_shown"),
                    ("succeeded", "failed", "cancelled"),
                    ("created", "finished", "took"),
                    ("cancelled_moment", "cancelled_by"),
                )
            },
        ),
    )
    verbs = (
        Verb(
            "cancel",
            _("Cancel"),
            "cancel",
            lambda batch, actor: BatchCancelAction(batch_id=batch.pk, by=actor),
            lambda batch: batch.status == BatchStatus.PROCESSING,
            variant="danger",
        ),
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Batch], search_term: str
    ) -> tuple[QuerySet[Batch], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        pk = parse_uuid(term)
        return (queryset.filter(pk=pk) if pk is not None else queryset.none()), False

    def get_urls(self) -> list[Any]:
        return [
            path("<path:object_id>/results/", self.admin_site.admin_view(self._results), name=RESULTS),
            *super().get_urls(),
        ]

    def _results(self, request: HttpRequest, object_id: str) -> StreamingHttpResponse:
        batch = self.get_object(request, object_id)
        if not self.has_view_permission(request, batch):
            raise PermissionDenied
        if batch is None:
            raise Http404
        return results_file(batch)

    @display(_("id"), ordering="pk")
    def id_shown(self, batch: Batch) -> str:
        """Its random end: the beginning is the time, which has a column of its own."""
        return str(batch.pk)[-12:]

    @display(_("status"), ordering="status", label=COLOURS)
    def status_shown(self, batch: Batch) -> tuple[str, str]:
        return batch.status, batch.get_status_display()

    @display(_("status"))
    def status_text(self, batch: Batch) -> Any:
        """Pages have no coloured labels, as lists have."""
        return batch.get_status_display()

    @display(_("progress"))
    def progress(self, batch: Batch) -> Any:
        percent = batch.done * 100 // batch.total if batch.total else 100
        return _("%(done)s of %(total)s (%(percent)d %%)") % {
            "done": counted(batch.done),
            "total": counted(batch.total),
            "percent": percent,
        }

    @display(_("agent"))
    def agent_shown(self, batch: Batch) -> Any:
        return link("admin:agents_agent_change", batch.agent_id, batch.agent_id) if batch.agent_id else "-"

    @display(_("results"))
    def results_shown(self, batch: Batch) -> Any:
        items = link(
            "admin:orchestrator_batchitem_changelist",
            _("Show the items"),
            query=f"?batch__id__exact={batch.pk}",
        )
        file = link(f"admin:{RESULTS}", _("Download (JSONL)"), batch.pk)
        return format_html("{} · {}", items, file)

    @display(_("created at"), ordering="pk")
    def created(self, batch: Batch) -> str:
        return moment(batch.created_at)

    @display(_("finished at"), ordering="finished_at")
    def finished(self, batch: Batch) -> str:
        return moment(batch.finished_at)

    @display(_("duration"))
    def took(self, batch: Batch) -> str:
        if batch.finished_at is None:
            return "-"
        return duration((batch.finished_at - batch.created_at).total_seconds())

    @display(_("cancelled at"))
    def cancelled_moment(self, batch: Batch) -> str:
        return moment(batch.cancelled_at)


@admin.register(BatchItem)
class BatchItemAdmin(LookOnly, Console):
    list_display = ("position", "status_shown", "custom_id", "tenant", "task_shown", "finished", "error_type")
    list_select_related = ("tenant",)
    list_filter = (("status", ChoicesCheckboxFilter), ("tenant", AutocompleteSelectFilter))
    search_fields = ("custom_id",)
    search_help_text = _("A caller's id, a batch's or a task's: the whole of it")
    ordering = ("batch", "position")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("position", "status_text"),
                    ("batch_shown", "tenant"),
                    ("custom_id", "task_shown"),
                    "finished",
                )
            },
        ),
        (_("Outcome"), {"fields": ("error_shown", "result_shown")}),
        (_("Work"), {"fields": ("request_shown",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[BatchItem]:
        rows: QuerySet[BatchItem] = super().get_queryset(request)
        if request.resolver_match and request.resolver_match.url_name == "orchestrator_batchitem_changelist":
            return rows.defer("request", "result")
        return rows

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """The link of a batch's page leads here."""
        return lookup == "batch__id__exact" or super().lookup_allowed(lookup, value, request)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[BatchItem], search_term: str
    ) -> tuple[QuerySet[BatchItem], bool]:
        """Whole ids only: searching for parts of them would read the whole table."""
        term = search_term.strip()
        if not term:
            return queryset, False
        pk = parse_uuid(term)
        if pk is None:
            return queryset.filter(custom_id=term), False
        return queryset.filter(batch=pk) | queryset.filter(task=pk) | queryset.filter(custom_id=term), False

    @display(_("status"), ordering="status", label=ITEM_COLOURS)
    def status_shown(self, item: BatchItem) -> tuple[str, str]:
        return item.status, item.get_status_display()

    @display(_("status"))
    def status_text(self, item: BatchItem) -> Any:
        return item.get_status_display()

    @display(_("batch"))
    def batch_shown(self, item: BatchItem) -> Any:
        return link("admin:orchestrator_batch_change", item.batch_id, item.batch_id)

    @display(_("task"))
    def task_shown(self, item: BatchItem) -> Any:
        if item.task_id is None:
            return "-"
        return link("admin:core_task_change", str(item.task_id)[-12:], item.task_id)

    @display(_("finished at"))
    def finished(self, item: BatchItem) -> str:
        return moment(item.finished_at)

    @display(_("error"))
    def error_type(self, item: BatchItem) -> str:
        return item.error["type"] if item.error else "-"

    @display(_("error"))
    def error_shown(self, item: BatchItem) -> Any:
        return pretty(item.error)

    @display(_("result"))
    def result_shown(self, item: BatchItem) -> Any:
        return pretty(item.result)

    @display(_("request"))
    def request_shown(self, item: BatchItem) -> Any:
        return pretty(item.request)
