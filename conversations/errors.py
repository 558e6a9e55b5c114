"""What can go wrong with conversations."""

from django.utils.translation import gettext_lazy as _

from core.errors import Conflict, NotFound


class SessionNotFound(NotFound):
    default_message = _("Session not found.")


class SessionExists(Conflict):
    default_message = _("There is a session with this id already.")


class SessionBound(Conflict):
    default_message = _("The session belongs to another agent.")


class SessionBusy(Conflict):
    """The agent takes one message at a time, and one is being answered."""

    default_message = _("The session is busy with another message.")


class SessionClosed(Conflict):
    """It takes no more messages. Begin another session."""

    default_message = _("The session is closed.")


class SessionExpired(Conflict):
    """Nothing was said in it for 30 days: it takes no more messages. Begin another session."""

    default_message = _("The session has expired.")
