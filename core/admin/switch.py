"""The kill switch of whatever can be switched off: a page that asks before it does."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminTextInputWidget

from core.actions.base import Action
from core.actions.bus import execute
from core.admin.console import actor_of
from core.admin.roles import tenant_of
from core.errors import NoobleError
from core.tenancy import tenant_scope


class ReasonForm(forms.Form):
    reason = forms.CharField(label=_("Reason"), max_length=500, widget=UnfoldAdminTextInputWidget)


class KillSwitch:
    """For pages whose rows have `suspended_at` and `suspended_reason`. It comes before the page's class."""

    def suspend_action(self, obj: Any, reason: str, actor: str) -> Action[Any]:
        raise NotImplementedError

    def unsuspend_action(self, obj: Any, actor: str) -> Action[Any]:
        raise NotImplementedError

    def may_switch(self, request: HttpRequest, obj: Any) -> bool:
        return bool(self.may_change(request, obj))  # type: ignore[attr-defined]

    @property
    def switch_address(self) -> str:
        meta = self.opts  # type: ignore[attr-defined]
        return f"admin:{meta.app_label}_{meta.model_name}_switch"

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.switch_page)  # type: ignore[attr-defined]
        name = self.switch_address.removeprefix("admin:")
        return [path("<path:object_id>/switch/", view, name=name), *super().get_urls()]  # type: ignore[misc]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> Any:
        obj = self.get_object(request, object_id)  # type: ignore[attr-defined]
        context = dict(extra_context or {})
        if obj is not None:
            context["switched"] = obj
            if self.may_switch(request, obj):
                context["switch_address"] = reverse(self.switch_address, args=[obj.pk])
        return super().change_view(request, object_id, form_url, context)  # type: ignore[misc]

    def switch_page(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Asks for the reason and switches off; or, of what is off, whether to switch it on."""
        obj = self.get_object(request, object_id)  # type: ignore[attr-defined]
        if obj is None:
            back: HttpResponse = self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
            return back
        if not self.may_switch(request, obj):
            raise PermissionDenied
        form = ReasonForm(request.POST or None)
        is_off = obj.suspended_at is not None
        if request.method == "POST" and (is_off or form.is_valid()):
            self._switch(request, obj, None if is_off else form.cleaned_data["reason"])
            meta = self.opts  # type: ignore[attr-defined]
            page = f"admin:{meta.app_label}_{meta.model_name}_change"
            return HttpResponseRedirect(reverse(page, args=[obj.pk]))
        context = {
            **self.admin_site.each_context(request),  # type: ignore[attr-defined]
            "opts": self.opts,  # type: ignore[attr-defined]
            "title": _("Switch on again") if is_off else _("Switch off"),
            "obj": obj,
            "form": form,
        }
        return TemplateResponse(request, "core/admin/switch.html", context)

    def _switch(self, request: HttpRequest, obj: Any, reason: str | None) -> None:
        actor = actor_of(request)
        action = (
            self.unsuspend_action(obj, actor) if reason is None else self.suspend_action(obj, reason, actor)
        )
        told = gettext("Switched on again") if reason is None else gettext("Switched off")
        try:
            with tenant_scope(str(tenant_of(obj))):
                execute(action)
        except NoobleError as error:
            self.message_user(request, str(error), messages.ERROR)  # type: ignore[attr-defined]
        else:
            self.log_change(request, obj, told)  # type: ignore[attr-defined]
            self.message_user(request, f"{obj}: {told}", messages.SUCCESS)  # type: ignore[attr-defined]
