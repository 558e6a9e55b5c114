"""What is known about an agent beside what people write: checks, and the template it came from."""

from __future__ import annotations

from typing import Any

from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext_lazy as _

from agents.models import Agent
from agents.validation import validation_of
from core.actions.registry import build
from core.admin.console import Verb, display, link, moment

STATUSES = {"valid": _("valid"), "warnings": _("warnings"), "invalid": _("invalid")}
COLOURS = {"valid": "success", "warnings": "warning", "invalid": "danger"}
CHECKS = ("validation_shown", "template_shown")
FIELDSET = (_("Check"), {"fields": CHECKS})

# The verb stands on a higher floor, where providers can be asked: here it is known by its public name.
CHECK = Verb(
    "validate",
    _("Check"),
    "fact_check",
    lambda agent, actor: build("agent.ask_validation", {"agent_id": agent.pk}),
    lambda agent: agent.deleted_at is None,
)


class ShowsChecks:
    """Columns and fields for an agent's page."""

    @display(_("check"), label=COLOURS)
    def check_shown(self, agent: Agent) -> Any:
        validation = validation_of(agent)
        return (validation.status, STATUSES[validation.status]) if validation else "-"

    @display(_("findings"))
    def validation_shown(self, agent: Agent) -> Any:
        validation = validation_of(agent)
        if validation is None:
            return _("Not checked yet; it fits the tier.")
        lines = format_html_join(
            "",
            "<li><code>{}</code>: {}</li>",
            ((finding.field, finding.message) for finding in validation.findings),
        )
        return format_html(
            "{} ({})<ul>{}</ul>", STATUSES[validation.status], moment(validation.checked_at), lines
        )

    @display(_("template"))
    def template_shown(self, agent: Agent) -> Any:
        if agent.template is None or agent.template_version is None:
            return "-"
        text = f"{agent.template.name} v{agent.template_version}"
        shown = link("admin:agents_agenttemplate_change", text, agent.template.pk)
        if agent.template.version <= agent.template_version:
            return shown
        newer = _("changed since: it is at version %(version)s") % {"version": agent.template.version}
        return format_html("{} ({})", shown, newer)
