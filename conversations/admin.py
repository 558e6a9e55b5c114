"""Sessions in the console: their conversation, to read."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter, FieldTextFilter

from conversations.models import Message, Session
from core.admin.console import Console, LookOnly, display

SHOWN = 100  # messages on one page of a conversation


@admin.register(Session)
class SessionAdmin(LookOnly, Console):
    list_display = ("key", "tenant", "agent", "user_id", "messages_shown", "created_at")
    list_select_related = ("tenant", "agent")
    list_filter = (("tenant", AutocompleteSelectFilter), ("agent__name", FieldTextFilter))
    search_fields = ("key", "user_id")
    search_help_text = _("The whole id of a session or of an end user")
    ordering = ("-pk",)
    fields = ("key", ("tenant", "agent"), ("user_id", "created_at"))
    change_form_outer_after_template = "conversations/admin/conversation.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Session]:
        rows: QuerySet[Session] = super().get_queryset(request)
        counted = Message.unscoped.filter(session=OuterRef("pk")).order_by().values("session")
        counted = counted.annotate(number=Count("pk")).values("number")
        return rows.annotate(message_count=Coalesce(Subquery(counted), 0))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Session], search_term: str
    ) -> tuple[QuerySet[Session], bool]:
        """Whole ids only: searching for parts of them would read the whole table."""
        term = search_term.strip()
        if not term:
            return queryset, False
        return queryset.filter(key=term) | queryset.filter(user_id=term), False

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> Any:
        session = self.get_object(request, object_id)
        context = self._conversation(session, request.GET.get("before", "")) if session else {}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _conversation(self, session: Session, before: str) -> dict[str, Any]:
        """The newest messages, or those before the one that the address names."""
        paged = before.isdecimal() and len(before) < 19
        rows = Message.unscoped.filter(session=session).order_by("-pk")
        if paged:
            rows = rows.filter(pk__lt=int(before))
        found = list(rows[: SHOWN + 1])
        older = found[SHOWN - 1].pk if len(found) > SHOWN else None
        return {"conversation": found[:SHOWN][::-1], "older": older, "paged": paged}

    @display(_("messages"))
    def messages_shown(self, session: Any) -> int:
        return int(session.message_count)
