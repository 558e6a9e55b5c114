"""What can go wrong with agents."""

from django.utils.translation import gettext_lazy as _

from core.errors import Conflict, NotFound


class AgentNotFound(NotFound):
    default_message = _("Agent not found.")


class SlugTaken(Conflict):
    default_message = _("Another agent of the tenant has this slug.")


class VersionNotFound(NotFound):
    default_message = _("The agent has no such version.")


class StaleVersion(Conflict):
    """Somebody has changed the agent since; `details` say what: `{etag, version, diff}`."""

    default_message = _("The agent has been changed meanwhile.")


class TooManyAgents(Conflict):
    """The tenant has as many agents as its tier allows."""

    def __init__(self, tier: str, limit: int) -> None:
        super().__init__(
            _("The tier %(tier)s allows %(limit)d agents.") % {"tier": tier, "limit": limit},
            details={"limit": limit},
        )


class TemplateNotFound(NotFound):
    default_message = _("Template not found.")


class TemplateSlugTaken(Conflict):
    default_message = _("Another template of the tenant has this slug.")
