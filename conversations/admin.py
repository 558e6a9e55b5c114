"""Sessions in the console: their conversation to read, and what an operator does with them."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Model, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import format_html_join
from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesCheckboxFilter, FieldTextFilter

from conversations.actions import SessionCloseAction, SessionDeleteAction
from conversations.models import OPEN, Message, Session, SessionState
from conversations.transcript import FORMS, Transcript
from core.actions.bus import execute
from core.admin.console import Verb, VerbAdmin, actor_of, display, link, moment, pretty
from core.models.membership import Role
from core.tenancy import tenant_scope

SHOWN = 100  # messages on one page of a conversation

COLOURS = {
    SessionState.CREATED: "info",
    SessionState.ACTIVE: "success",
    SessionState.IDLE: "default",
    SessionState.CLOSED: "warning",
    SessionState.EXPIRED: "warning",
}


@admin.register(Session)
class SessionAdmin(VerbAdmin):
    changed_by = Role.EDITOR
    list_display = (
        "key",
        "title",
        "state_shown",
        "tenant",
        "agent",
        "user_id",
        "messages_shown",
        "last_active",
    )
    list_select_related = ("tenant", "agent")
    list_filter = (
        ("state", ChoicesCheckboxFilter),
        ("tenant", AutocompleteSelectFilter),
        ("agent__name", FieldTextFilter),
        ("user_id", FieldTextFilter),
    )
    search_fields = ("key", "user_id")
    search_help_text = _("The whole id of a session or of an end user")
    ordering = ("-pk",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("key", "state"),
                    ("title", "export_shown"),
                    ("tenant", "agent"),
                    ("created", "last_active", "ended"),
                )
            },
        ),
        (_("End user"), {"fields": ("user_id", "user_info_shown")}),
        (_("Context variables"), {"fields": ("context_shown",)}),
    )
    change_form_outer_after_template = "conversations/admin/conversation.html"
    verbs = (
        Verb(
            "close",
            _("Close"),
            "lock",
            lambda session, actor: SessionCloseAction(session_id=session.key, by=actor),
            lambda session: session.state in OPEN,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Session]:
        rows: QuerySet[Session] = super().get_queryset(request).filter(deleted_at=None)
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

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """By verbs only."""
        return False

    def get_urls(self) -> list[Any]:
        return [
            path(
                f"<path:object_id>/export/{form}/",
                self.admin_site.admin_view(partial(self._export, form=form)),
                name=f"conversations_session_export_{form}",
            )
            for form in FORMS
        ] + list(super().get_urls())

    def _export(self, request: HttpRequest, object_id: str, form: str) -> HttpResponse:
        session = self.get_object(request, object_id)
        if not self.has_view_permission(request, session):
            raise PermissionDenied
        if session is None:
            raise Http404
        transcript = Transcript(session, form, get_language() or "en")
        with tenant_scope(session.tenant_id):
            return HttpResponse(b"".join(transcript.pieces()), headers=transcript.headers)

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

    def delete_model(self, request: HttpRequest, obj: Session) -> None:
        with tenant_scope(obj.tenant_id):
            execute(SessionDeleteAction(session_id=obj.key, by=actor_of(request)))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        for session in queryset:
            self.delete_model(request, session)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What was said in it goes with it: nothing to ask about message by message."""
        names = [str(session) for session in objs]
        missing = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        return names, {self.opts.verbose_name_plural: len(names)}, missing, []

    @display(_("messages"))
    def messages_shown(self, session: Any) -> int:
        return int(session.message_count)

    @display(_("state"), ordering="state", label=COLOURS)
    def state_shown(self, session: Session) -> tuple[str, str]:
        return session.state, session.get_state_display()

    @display(_("created at"), ordering="created_at")
    def created(self, session: Session) -> str:
        return moment(session.created_at)

    @display(_("last active at"), ordering="last_active_at")
    def last_active(self, session: Session) -> str:
        return moment(session.last_active_at)

    @display(_("ended at"))
    def ended(self, session: Session) -> str:
        return moment(session.ended_at)

    @display(_("about the end user"))
    def user_info_shown(self, session: Session) -> Any:
        return pretty(session.user_info or None)

    @display(_("context variables"))
    def context_shown(self, session: Session) -> Any:
        return pretty(session.context or None)

    @display(_("export"))
    def export_shown(self, session: Session) -> Any:
        address = "admin:conversations_session_export_"
        return format_html_join(
            " · ", "{}", ((link(f"{address}{form}", label, session.pk),) for form, label in EXPORTS)
        )


EXPORTS = (("json", "JSON"), ("markdown", "Markdown"), ("text", _("Text")))
