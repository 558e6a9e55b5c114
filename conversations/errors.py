"""What can go wrong with conversations."""

from django.utils.translation import gettext_lazy as _

from core.errors import Conflict, NotFound


class SessionNotFound(NotFound):
    default_message = _("Session not found.")


class SessionBound(Conflict):
    default_message = _("The session belongs to another agent.")


class SessionBusy(Conflict):
    """The agent takes one message at a time, and one is being answered."""

    default_message = _("The session is busy with another message.")
