"""The front door in the console. Here: webhooks, and what became of each delivery; then batches."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesCheckboxFilter, DropdownFilter
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldBooleanSwitchWidget

from core.actions.bus import execute
from core.admin.console import (
    LookOnly,
    RefusableForm,
    SavesByAction,
    Verb,
    VerbAdmin,
    display,
    duration,
    link,
    moment,
    pretty,
)
from core.ids import parse_uuid
from core.models.membership import Role
from core.tenancy import tenant_scope
from orchestrator.actions import (
    WebhookCreateAction,
    WebhookDeleteAction,
    WebhookReplayAction,
    WebhookResource,
    WebhookRotateAction,
    WebhookUpdateAction,
)
from orchestrator.batches.console import BatchAdmin, BatchItemAdmin
from orchestrator.events import NOTICES
from orchestrator.models import Delivery, DeliveryAttempt, WebhookEndpoint

__all__ = ["BatchAdmin", "BatchItemAdmin", "DeliveryAdmin", "WebhookAdmin"]

SECRET = _("The secret, shown this once: %(secret)s")


class WebhookForm(RefusableForm):
    events = forms.MultipleChoiceField(
        label=_("Events"),
        required=False,
        choices=[(name, name) for name in sorted(NOTICES)],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text=_("Names of the events that it hears of; none means all."),
    )
    disabled = forms.BooleanField(
        label=_("Disabled"),
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text=_("Nothing is sent to it; what waits for it is dead, and can be replayed later."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "disabled" in self.fields:
            self.fields["disabled"].initial = self.instance.disabled_at is not None


@admin.register(WebhookEndpoint)
class WebhookAdmin(SavesByAction, VerbAdmin):
    changed_by = Role.OWNER
    form = WebhookForm
    list_display = ("url", "tenant", "status_shown", "events_shown", "updated_at")
    list_select_related = ("tenant",)
    list_filter = (("tenant", AutocompleteSelectFilter), ("disabled_at", admin.EmptyFieldListFilter))
    search_fields = ("url", "description")
    autocomplete_fields = ("tenant",)
    ordering = ("-pk",)
    fieldsets = (
        (None, {"fields": ("tenant", "url", "description", "events", "disabled")}),
        (_("State"), {"fields": (("state", "failing"), ("previous_shown", "deliveries_shown"))}),
    )
    add_fieldsets = ((None, {"fields": ("tenant", "url", "description", "events", "disabled")}),)
    verbs = (
        Verb(
            "rotate",
            _("New secret"),
            "autorenew",
            lambda endpoint, actor: WebhookRotateAction(webhook_id=endpoint.pk),
            lambda endpoint: True,
        ),
    )

    def get_fieldsets(self, request: HttpRequest, obj: WebhookEndpoint | None = None) -> Any:
        return self.fieldsets if obj else self.add_fieldsets

    def get_readonly_fields(
        self, request: HttpRequest, obj: WebhookEndpoint | None = None
    ) -> tuple[str, ...]:
        shown = ("state", "failing", "previous_shown", "deliveries_shown")
        return ("tenant", *shown) if obj else shown

    def save_model(self, request: HttpRequest, obj: WebhookEndpoint, form: Any, change: bool) -> None:
        fields = {
            "url": obj.url,
            "description": obj.description,
            "events": tuple(form.cleaned_data["events"]),
            "disabled": form.cleaned_data["disabled"],
        }
        with tenant_scope(obj.tenant_id):
            if change:
                execute(WebhookUpdateAction(**fields, webhook_id=obj.pk))
            else:
                made = execute(WebhookCreateAction(**fields))
                obj.pk = made.webhook_id
                self.message_user(request, SECRET % {"secret": made.secret}, messages.WARNING)
        obj.refresh_from_db()

    def done(self, obj: WebhookEndpoint, verb: Verb, result: WebhookResource) -> Any:
        until = gettext("The former one signs for 24 hours more.")
        return f"{SECRET % {'secret': result.secret}} {until}"

    def delete_model(self, request: HttpRequest, obj: WebhookEndpoint) -> None:
        with tenant_scope(obj.tenant_id):
            execute(WebhookDeleteAction(webhook_id=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[WebhookEndpoint]) -> None:
        for endpoint in queryset:
            self.delete_model(request, endpoint)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Its deliveries go with it: they are its log, and nothing to ask about one by one."""
        names = [str(endpoint) for endpoint in objs]
        missing = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        return names, {self.opts.verbose_name_plural: len(names)}, missing, []

    @display(_("status"), label={"disabled": "danger", "failing": "warning", "living": "success"})
    def status_shown(self, endpoint: WebhookEndpoint) -> Any:
        if endpoint.disabled_at is not None:
            reason = endpoint.get_disabled_reason_display()
            return "disabled", gettext("disabled: %(reason)s") % {"reason": reason}
        return ("failing", _("failing")) if endpoint.failing_since else ("living", _("enabled"))

    @display(_("status"))
    def state(self, endpoint: WebhookEndpoint) -> Any:
        """Pages have no coloured labels, as lists have."""
        return self.status_shown(endpoint)[1]

    @display(_("events"))
    def events_shown(self, endpoint: WebhookEndpoint) -> Any:
        return ", ".join(endpoint.events) or _("all")

    @display(_("failing since"))
    def failing(self, endpoint: WebhookEndpoint) -> str:
        return moment(endpoint.failing_since)

    @display(_("former secret until"))
    def previous_shown(self, endpoint: WebhookEndpoint) -> str:
        return moment(endpoint.previous_until)

    @display(_("deliveries"))
    def deliveries_shown(self, endpoint: WebhookEndpoint) -> Any:
        query = f"?endpoint__id__exact={endpoint.pk}"
        return link("admin:orchestrator_delivery_changelist", _("Show them"), query=query)


class AttemptInline(LookOnly, TabularInline):  # type: ignore[misc]
    """What each attempt came to."""

    model = DeliveryAttempt
    verbose_name_plural = _("attempts")
    fields = ("started", "took", "status_code", "error", "answer_shown")
    readonly_fields = fields
    ordering = ("pk",)
    hide_title = True
    extra = 0

    @display(_("started at"))
    def started(self, attempt: DeliveryAttempt) -> str:
        return moment(attempt.started_at)

    @display(_("duration"))
    def took(self, attempt: DeliveryAttempt) -> str:
        return duration(attempt.seconds)

    @display(_("beginning of the answer"))
    def answer_shown(self, attempt: DeliveryAttempt) -> Any:
        return format_html('<pre class="console-json">{}</pre>', attempt.answer) if attempt.answer else "-"


class EventFilter(DropdownFilter):  # type: ignore[misc]
    """Of the names that there are: asking the table for its values would read all of it."""

    title = _("event")
    parameter_name = "event"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in sorted(NOTICES)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> QuerySet[Delivery]:
        return queryset.filter(event=self.value()) if self.value() else queryset


@admin.register(Delivery)
class DeliveryAdmin(LookOnly, VerbAdmin):
    changed_by = Role.OWNER
    inlines = (AttemptInline,)
    list_display = ("event", "status_shown", "endpoint", "tenant", "failures", "next_attempt", "created")
    list_select_related = ("tenant", "endpoint")
    list_filter = (
        ("status", ChoicesCheckboxFilter),
        ("tenant", AutocompleteSelectFilter),
        EventFilter,
    )
    search_fields = ("subject",)
    search_help_text = _("The whole id of an agent, of a delivery or of an event")
    ordering = ("-pk",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("event", "status"),
                    ("endpoint", "tenant"),
                    ("subject", "message"),
                    ("created", "next_attempt"),
                    ("finished", "failures"),
                )
            },
        ),
        (_("Sent"), {"fields": ("body_shown",)}),
    )
    verbs = (
        Verb(
            "replay",
            _("Replay"),
            "replay",
            lambda delivery, actor: WebhookReplayAction(delivery_id=delivery.pk),
            lambda delivery: delivery.endpoint.disabled_at is None,
            variant="primary",
        ),
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Delivery], search_term: str
    ) -> tuple[QuerySet[Delivery], bool]:
        """Whole ids only: searching for parts of them would read the whole table."""
        term = search_term.strip()
        if not term:
            return queryset, False
        found, whole = queryset.filter(subject=term), parse_uuid(term)
        if whole is not None:
            found = found | queryset.filter(pk=whole) | queryset.filter(notice__event_id=whole)
        return found, False

    @display(
        _("status"),
        ordering="status",
        label={
            Delivery.Status.PENDING: "info",
            Delivery.Status.DELIVERED: "success",
            Delivery.Status.DEAD: "danger",
        },
    )
    def status_shown(self, delivery: Delivery) -> tuple[str, str]:
        return delivery.status, delivery.get_status_display()

    @display(_("next attempt"))
    def next_attempt(self, delivery: Delivery) -> str:
        return moment(delivery.due_at if delivery.status == Delivery.Status.PENDING else None)

    @display(_("created at"), ordering="pk")
    def created(self, delivery: Delivery) -> str:
        return moment(delivery.created_at)

    @display(_("finished at"))
    def finished(self, delivery: Delivery) -> str:
        return moment(delivery.finished_at)

    @display(_("event id"))
    def message(self, delivery: Delivery) -> str:
        return str(delivery.notice.event_id)

    @display(_("event"))
    def body_shown(self, delivery: Delivery) -> Any:
        return pretty(delivery.notice.body)
