"""What can go wrong with agents."""

from django.utils.translation import gettext_lazy as _

from core.errors import Conflict, NotFound


class AgentNotFound(NotFound):
    default_message = _("Agent not found.")


class SlugTaken(Conflict):
    default_message = _("Another agent of the tenant has this slug.")
