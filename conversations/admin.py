"""Sessions in the console: their conversation, to read."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display

from conversations.models import Message, Session
from core.admin.console import Console, LookOnly

SHOWN = 100  # messages on one page of a conversation


@admin.register(Session)
class SessionAdmin(LookOnly, Console):
    list_display = ("key", "tenant", "agent", "user_id", "messages_shown", "created_at")
    list_select_related = ("tenant", "agent")
    list_filter = (("tenant", AutocompleteSelectFilter), ("agent", AutocompleteSelectFilter))
    search_fields = ("key", "user_id")
    search_help_text = _("The whole id of a session or of an end user")
    ordering = ("-pk",)
    fieldsets = (
        (None, {"fields": (("key", "tenant", "agent"), ("user_id", "created_at"))}),
        (_("Conversation"), {"fields": ("conversation",)}),
    )

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

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        session = super().get_object(request, object_id, from_field)
        if session is not None:
            before = request.GET.get("before", "")
            session.shown_before = int(before) if before.isdecimal() and len(before) < 19 else None
        return session

    @display(description=_("messages"))
    def messages_shown(self, session: Any) -> int:
        return int(session.message_count)

    @display(description="")
    def conversation(self, session: Any) -> Any:
        """The newest messages, or those before the one that the address names."""
        rows = Message.unscoped.filter(session=session).order_by("-pk")
        if session.shown_before is not None:
            rows = rows.filter(pk__lt=session.shown_before)
        messages = list(rows[: SHOWN + 1])
        older = messages[SHOWN - 1].pk if len(messages) > SHOWN else None
        return render_to_string(
            "conversations/admin/conversation.html",
            {"messages": messages[:SHOWN][::-1], "older": older, "paged": session.shown_before is not None},
        )
