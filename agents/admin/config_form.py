"""The form of an agent's configuration: agents and templates have it."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from agents.config import AgentConfig
from core.admin.forms import fields_of, initial_of, value_of

PREFIX = "config_"
WORDS = {
    "provider": (_("provider"), _("openai, groq, scripted, or a provider that the tenant has registered.")),
    "model": (_("model"), _("The provider's name of the model.")),
    "fallback_provider": (
        _("fallback provider"),
        _("Asked instead when the provider is away, and nothing has been answered yet."),
    ),
    "fallback_model": (_("fallback model"), ""),
    "instructions": (
        _("instructions"),
        _(
            "The system prompt. Replaced: {{agent_name}}, {{user_id}}, {{session_id}}, {{date}}, {{time}},"
            " and the context variables of the session."
        ),
    ),
    "temperature": (_("temperature"), _("0 to 2; the provider's own when empty.")),
    "max_output_tokens": (_("max. output tokens"), _("The provider's own bound when empty.")),
    "context_tokens": (_("context tokens"), _("How many tokens of history a run may send, estimated.")),
    "timeout_seconds": (_("timeout in seconds"), _("The longest a run may take; the platform's when empty.")),
    "max_turns": (_("max. turns"), _("How many model calls one run may make.")),
    "multitask_strategy": (
        _("while a run is open"),
        _("The session's next message waits (enqueue), is refused (reject), or ends the run (interrupt)."),
    ),
    "restart_after_fault": (
        _("restart after a fault"),
        _("A provider that fails in the middle of an answer is asked anew, at most 3 times in all."),
    ),
    "greeting": (_("greeting"), _("What the chat page shows before the first message.")),
    "access": (
        _("access"),
        _(
            "Who may chat: everybody (public), end users with a token that the tenant has signed "
            "(signed), or the tenant's keys only (key)."
        ),
    ),
    "allowed_origins": (
        _("allowed origins"),
        _("The web pages that browsers may chat from, one https://host a line; every page when empty."),
    ),
    "require_resume_token": (
        _("resume token required"),
        _("Once a session has a message, its id alone opens nothing."),
    ),
}
CONFIG_FIELDS = fields_of(AgentConfig, PREFIX, WORDS)
ANSWERS = ("config_provider", "config_model", "config_instructions", "config_greeting")
FAULTS = (
    "config_fallback_provider",
    "config_fallback_model",
    "config_multitask_strategy",
    "config_restart_after_fault",
)
ACCESS = ("config_access", "config_allowed_origins", "config_require_resume_token")
# What the schema gains appears here by itself.
LIMITS = [name for name in CONFIG_FIELDS if name not in ANSWERS + FAULTS + ACCESS]
CONFIG_FIELDSETS = (
    (_("Model"), {"fields": (("config_provider", "config_model"), "config_instructions", "config_greeting")}),
    (_("Access"), {"fields": (ACCESS[:1] + ACCESS[2:], ACCESS[1])}),
    (_("Faults and order"), {"fields": (FAULTS[:2], FAULTS[2:])}),
    (_("Limits"), {"fields": [tuple(LIMITS[at : at + 2]) for at in range(0, len(LIMITS), 2)]}),
)


ConfigFields = type("ConfigFields", (forms.Form,), dict(CONFIG_FIELDS))


class ConfigForm(forms.ModelForm, ConfigFields):  # type: ignore[misc, type-arg, valid-type]
    """A model's own fields, and those of its configuration."""

    config: AgentConfig | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        instance = kwargs.get("instance")
        present = self.present_config(instance) if instance is not None else None
        if present is not None:
            initial = initial_of(AgentConfig(**present), PREFIX)
            kwargs["initial"] = {**initial, **(kwargs.get("initial") or {})}
        super().__init__(*args, **kwargs)
        if "description" in self.fields:
            self.fields["description"].widget.attrs["rows"] = 3

    def present_config(self, instance: Any) -> dict[str, Any] | None:
        """The configuration to begin with, if there is one yet."""
        config: dict[str, Any] | None = instance.config
        return config

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        config = value_of(self, AgentConfig, PREFIX)
        assert config is None or isinstance(config, AgentConfig)
        self.config = config
        return cleaned
