"""What every page of the console shares.

Rules live above the model layer: writing a row from here would go past them. So a page either
only looks, or saves and acts by executing an action in the row's tenant scope.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial, wraps
from typing import Any, TypeVar

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.forms import BaseForm, ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import SimpleTemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from pydantic import ValidationError
from unfold.admin import ModelAdmin
from unfold.decorators import display as unfold_display

from core.actions.base import Action
from core.actions.bus import execute
from core.admin.roles import is_operator, may, shown_on_page
from core.api.errors import named
from core.changes import Change
from core.errors import NoobleError, ValidationFailed
from core.models.membership import Role
from core.postgres.cursors import tenant_column
from core.tenancy import tenant_scope

F = TypeVar("F", bound=Callable[..., Any])
View = Callable[[HttpRequest], HttpResponse]


def display(description: Any, **options: Any) -> Callable[[F], F]:
    """Unfold's decorator of computed columns, typed."""

    def decorate(function: F) -> F:
        decorated: F = unfold_display(function, description=description, **options)
        return decorated

    return decorate


def actor_of(request: HttpRequest) -> str:
    """The person, as records name them."""
    return f"user:{request.user.get_username()}"


def link(address: str, text: Any, *args: Any, query: str = "") -> SafeString:
    """A link to the page that is called `address`."""
    return format_html('<a class="text-link" href="{}{}">{}</a>', reverse(address, args=args), query, text)


def moment(value: datetime.datetime | None) -> str:
    """A time to the second, in the console's time zone."""
    if value is None:
        return "-"
    local = timezone.localtime(value)
    return f"{date_format(local, 'SHORT_DATE_FORMAT')} {local:%H:%M:%S}"


def counted(number: int) -> str:
    """A large number as the language groups it."""
    return number_format(number, force_grouping=True)


def shown_dollars(amount: Decimal | None) -> str:
    """US dollars to read; what nobody knows is not nothing."""
    if amount is None:
        return gettext("unknown")
    # Small amounts by their first digits: a call costs a fraction of a cent.
    digits = 2 if amount == 0 or amount >= 1 else min(12, 2 - amount.adjusted())
    return f"US$ {number_format(round(amount, digits), digits)}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def seen_by(permission: str) -> Callable[[View], View]:
    """For pages of the console that belong to no table: people of the console who have the permission."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest) -> HttpResponse:
            if not request.user.has_perm(permission):
                raise PermissionDenied
            return view(request)

        def page(request: HttpRequest) -> HttpResponse:
            answer: HttpResponse = admin.site.admin_view(guarded)(request)
            return answer

        return wraps(view)(page)

    return decorate


def pretty(value: Any) -> SafeString | str:
    """JSON to read; escaped, since agents and people wrote it."""
    if value is None:
        return "-"
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return format_html('<pre class="console-json">{}</pre>', text)


def shown_changes(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """Changes to read: what `core/admin/changes.html` takes."""
    return shown_diff(change.as_dict() for change in changes)


def shown_diff(changes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same of changes that have become JSON."""
    return [
        {
            "field": change["field"],
            "before": _words(change["before"]),
            "after": _words(change["after"]),
            # Without the two lines that name the files of a diff.
            "lines": [
                (_LINES.get(line[:1], "same"), line) for line in change.get("diff", "").splitlines()[2:]
            ],
        }
        for change in changes
    ]


_LINES = {"+": "added", "-": "removed", "@": "place"}


def _words(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Console(ModelAdmin):  # type: ignore[misc]
    """A page of the console.

    Of a tenants' table: `seen_by` and `changed_by` are the roles that it takes; without a role it is
    changed by operators only, as is what belongs to no tenant. See `core.admin.roles`.
    """

    seen_by: Role = Role.VIEWER
    changed_by: Role | None = None

    list_per_page = 50
    list_filter_submit = True
    show_full_result_count = False

    @property
    def urls(self) -> list[Any]:
        patterns: list[Any] = self.get_urls()
        for pattern in patterns:
            pattern.callback = self._for_person(pattern.callback)
        return patterns

    def _for_person(self, view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def within(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            with shown_on_page(request, self):
                answer = view(request, *args, **kwargs)
                # Here, since a list is asked for its rows by its template.
                return answer.render() if isinstance(answer, SimpleTemplateResponse) else answer

        return within

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        """Who may not look learns no more from what is there than from what is not."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return super().history_view(request, object_id, extra_context)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        if tenant_column(self.model) is None:
            return bool(super().has_view_permission(request, obj))
        return may(request.user, "view", self.model, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.may_change(request)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.may_change(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.may_change(request, obj)

    def may_change(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the person may change rows of this table in one way or another, or that row."""
        if tenant_column(self.model) is None:
            return is_operator(request.user)
        return may(request.user, "change", self.model, obj)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """What is everybody's is the operators' to make."""
        field = super().formfield_for_foreignkey(db_field, request, **kwargs)
        if db_field.name == "tenant" and field is not None and not is_operator(request.user):
            field.required = True
        return field


class LookOnly:
    """Rows that nobody makes, changes or deletes by hand."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@dataclass(frozen=True)
class Verb:
    """Something to do with a row: a button on its page, and an action on a list's selection.

    `applies` tells whether the button is shown; the rule itself is the handler's.
    """

    name: str
    label: Any
    icon: str
    action: Callable[[Any, str], Action[Any]]
    applies: Callable[[Any], bool]
    variant: str = "default"


class VerbAdmin(Console):
    """Pages whose rows one can do something with; that needs the permission to change them."""

    verbs: tuple[Verb, ...] = ()
    change_form_outer_before_template = "core/admin/verbs.html"

    def has_verb_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.may_change(request, obj)

    def get_urls(self) -> list[Any]:
        return [
            path(
                f"<path:object_id>/do/{verb.name}/",
                self.admin_site.admin_view(partial(self._do, verb=verb)),
                name=self._address(verb.name).removeprefix("admin:"),
            )
            for verb in self.verbs
        ] + list(super().get_urls())

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        actions: dict[str, Any] = super().get_actions(request)
        if self.has_verb_permission(request):
            for verb in self.verbs:
                actions[verb.name] = (partial(_do_selected, verb=verb), verb.name, verb.label)
        return actions

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> Any:
        obj = self.get_object(request, object_id)
        buttons = [
            {"verb": verb, "address": reverse(self._address(verb.name), args=[obj.pk])}
            for verb in self.verbs
            if obj is not None and self.has_verb_permission(request, obj) and verb.applies(obj)
        ]
        return super().change_view(request, object_id, form_url, {"verbs": buttons, **(extra_context or {})})

    def _do(self, request: HttpRequest, object_id: str, verb: Verb) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not self.has_verb_permission(request):
            raise PermissionDenied
        obj = self.get_object(request, object_id)
        if obj is None:
            back: HttpResponse = self._get_obj_does_not_exist_redirect(request, self.model._meta, object_id)
            return back
        self.do(request, [obj], verb)
        return HttpResponseRedirect(reverse(self._address("change"), args=[obj.pk]))

    def _address(self, page: str) -> str:
        meta = self.model._meta
        return f"admin:{meta.app_label}_{meta.model_name}_{page}"

    def do(self, request: HttpRequest, rows: Any, verb: Verb) -> None:
        """Do it to each row, record who did, and tell how it went."""
        for obj in rows:
            try:
                # No transaction around it: what follows a commit must follow each row's own.
                with tenant_scope(obj.tenant_id):
                    result = execute(verb.action(obj, actor_of(request)))
            except NoobleError as error:
                self.message_user(request, f"{obj}: {error}", messages.ERROR)
            else:
                self.log_change(request, obj, str(verb.label))
                self.message_user(request, self.done(obj, verb, result), messages.SUCCESS)

    def done(self, obj: Any, verb: Verb, result: Any) -> Any:
        """What the person reads once it is done."""
        return f"{obj}: {verb.label}"


def _do_selected(admin: VerbAdmin, request: HttpRequest, rows: QuerySet[Any], *, verb: Verb) -> None:
    admin.do(request, rows, verb)


def show_refusal(form: BaseForm, error: NoobleError) -> None:
    """Why an action refused: at the fields that the error names, else above all of them.

    The field of `config.model` is `config_model`.
    """
    invalid = isinstance(error, ValidationFailed)
    others, shown = [], False
    for place, reason in error.details.items():
        field = place.replace(".", "_")
        if field in form.fields:
            form.add_error(field, reason if invalid else str(error))
            shown = True
        else:
            others.append(f"{place}: {reason}" if invalid else str(reason))
    if not shown or (invalid and others):
        form.add_error(None, " ".join([str(error), *others]))


class RefusableForm(ModelForm):  # type: ignore[type-arg]
    """Shows at its fields why an action refused; `refusal` is set when the page is shown again."""

    refusal: NoobleError | None = None

    def validate_unique(self) -> None:
        """The handlers' business, so that the console and the API refuse in the same words."""

    def validate_constraints(self) -> None:
        """As above."""

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if self.refusal is not None:
            self.tell_refusal(self.refusal)
        return cleaned

    def tell_refusal(self, error: NoobleError) -> None:
        show_refusal(self, error)


class SavesByAction:
    """A page whose `save_model` executes an action: a refusal brings the form back with its reason."""

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)  # type: ignore[misc]
        return type(form.__name__, (form,), {"refusal": getattr(request, "refusal", None)})

    def changeform_view(
        self, request: HttpRequest, object_id: Any = None, form_url: str = "", extra_context: Any = None
    ) -> Any:
        view = super().changeform_view  # type: ignore[misc]
        try:
            return view(request, object_id, form_url, extra_context)
        except (NoobleError, ValidationError) as error:
            # The view's transaction is rolled back by now.
            request.refusal = named(error)  # type: ignore[attr-defined]
            return view(request, object_id, form_url, extra_context)
