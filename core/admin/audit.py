"""The record of changes, to read and to search."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    ChoicesCheckboxFilter,
    FieldTextFilter,
    RangeDateFilter,
)

from core.admin.console import Console, LookOnly, display, moment, shown_changes
from core.changes import changes_between
from core.models import AuditEntry

FIELDS = 4  # that a line of the list names


@admin.register(AuditEntry)
class AuditAdmin(LookOnly, Console):
    list_display = ("when", "verb", "object_id", "fields_shown", "actor", "tenant", "source")
    list_select_related = ("tenant",)
    list_filter = (
        ("tenant", AutocompleteSelectFilter),
        ("created_at", RangeDateFilter),
        ("source", ChoicesCheckboxFilter),
        ("verb", FieldTextFilter),
        ("actor", FieldTextFilter),
    )
    search_fields = ("object_id",)
    search_help_text = _("The whole id of an object or of a request, or an actor")
    ordering = ("-pk",)
    fields = (
        ("verb", "when"),
        ("object_type", "object_id"),
        ("actor", "tenant"),
        ("source", "ip"),
        "request_id",
    )
    change_form_outer_after_template = "core/admin/changes.html"

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[AuditEntry], search_term: str
    ) -> tuple[QuerySet[AuditEntry], bool]:
        """Whole words only: searching for parts of them would read the whole table."""
        term = search_term.strip()
        if not term:
            return queryset, False
        found = (
            queryset.filter(object_id=term) | queryset.filter(actor=term) | queryset.filter(request_id=term)
        )
        return found, False

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> Any:
        entry = self.get_object(request, object_id)
        changes = changes_between(entry.before, entry.after) if entry else []
        shown = shown_changes(sorted(changes, key=lambda change: change.field))
        return super().change_view(request, object_id, form_url, {"changes": shown, **(extra_context or {})})

    @display(_("time"), ordering="pk")
    def when(self, entry: AuditEntry) -> str:
        return moment(entry.created_at)

    @display(_("fields"))
    def fields_shown(self, entry: AuditEntry) -> str:
        names = sorted({**entry.before, **entry.after})
        return ", ".join(names[:FIELDS]) + (" …" if len(names) > FIELDS else "")
