"""The forms of agents."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _
from unfold.widgets import (
    UnfoldAdminFileFieldWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from agents.admin.config_form import PREFIX, ConfigForm
from agents.document import AgentDocument
from agents.errors import StaleVersion
from agents.models import Agent
from core.admin.console import RefusableForm
from core.api.parsers import MAX_IMPORT, parse_json
from core.errors import MalformedRequest

# What is said about the change, and not of the agent.
ABOUT = ("note", "hold", "etag")


class AgentForm(ConfigForm, RefusableForm):
    """An agent and its newest configuration.

    Two people may have it open at once. Each field comes with the value that the person saw, and the
    form with the state that it showed. When somebody else was faster, the save is refused; the form
    then comes back as the present state with this person's own changes on it, to be saved again.
    """

    note = forms.CharField(
        label=_("Note"),
        required=False,
        max_length=500,
        widget=UnfoldAdminTextInputWidget,
        help_text=_("Why the configuration is changed: the version keeps it."),
    )
    hold = forms.BooleanField(
        label=_("Publish later"),
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text=_("A published agent goes on with its published version until you publish the new one."),
    )
    etag = forms.CharField(required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        agent = self.instance
        if "slug" in self.fields:
            self.fields["slug"].required = False
            self.fields["slug"].help_text = _("Made of the name when empty.")
        if agent.version is not None:
            self.initial["etag"] = agent.tag
            self.initial["hold"] = agent.published is not None and agent.published_id != agent.version_id
        for name, field in self.fields.items():
            # A form that was sent without them was not filled in by hand: it means what it says.
            sent = self.add_initial_prefix(name) in self.data
            field.show_hidden_initial = name not in ABOUT and (sent or not self.is_bound)
        if isinstance(self.refusal, StaleVersion):
            self._start_again()

    def present_config(self, instance: Agent) -> dict[str, Any] | None:
        return instance.version.config if instance.version is not None else None

    @property
    def seen(self) -> tuple[str, ...] | None:
        """The state that the person saw; None when nobody says."""
        return (self.cleaned_data["etag"],) if self.cleaned_data.get("etag") else None

    def changed_config(self) -> dict[str, Any] | None:
        """The fields of the configuration that the person has changed; None when there are none."""
        assert self.config is not None
        changed = [name.removeprefix(PREFIX) for name in self.changed_data if name.startswith(PREFIX)]
        values = {
            name: value
            for name, value in self.config.model_dump(mode="json").items()
            if any(field == name or field.startswith(f"{name}_") for field in changed)
        }
        return values or None

    def tell_refusal(self, error: Any) -> None:
        if isinstance(error, StaleVersion):
            self.add_error(
                None,
                _(
                    "Somebody else has changed this agent meanwhile, as shown above. Below are their changes "
                    "with yours on top: where you both changed a field, yours stands. Save again to keep it "
                    "so."
                ),
            )
        else:
            super().tell_refusal(error)

    def _start_again(self) -> None:
        """What the person has not touched becomes what it is now; what they have stays as they wrote it."""
        touched = set(self.changed_data)
        data = self.data.copy()  # type: ignore[attr-defined]
        for name, field in self.fields.items():
            present = field.prepare_value(self.get_initial_for_field(field, name))
            text = "" if present is None else present
            if field.show_hidden_initial:
                data[self.add_initial_prefix(name)] = text
            if name == "etag" or (name not in touched and name not in ABOUT):
                data[name] = text
                if isinstance(field, forms.BooleanField) and not present:
                    del data[name]
        self.data = data
        self.__dict__.pop("changed_data", None)


class ImportForm(forms.Form):
    """An exported agent, as a file or pasted."""

    file = forms.FileField(label=_("File"), required=False, widget=UnfoldAdminFileFieldWidget)
    text = forms.CharField(
        label=_("Or its text"), required=False, widget=UnfoldAdminTextareaWidget({"rows": 12}), strip=False
    )

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        file, text = cleaned.get("file"), cleaned.get("text")
        if bool(file) == bool(text):
            raise forms.ValidationError(_("Give a file or its text."))
        if file and file.size > MAX_IMPORT:
            raise forms.ValidationError(_("The file is too large."))
        content = parse_json(file.read() if file else text or "")
        if not isinstance(content, dict):
            raise MalformedRequest(details={"reason": "an exported agent is a JSON object"})
        self.document = AgentDocument(**content)
        return cleaned
