"""What can go wrong at the front door."""

from django.utils.translation import gettext_lazy as _

from core.errors import Conflict, NoobleError, RateLimited


class IdempotencyKeyReused(Conflict):
    """For 24 hours a key stands for one body."""

    default_message = _("This Idempotency-Key was used for another request.")


class TooManyConnections(RateLimited):
    default_message = _("Too many connections. Please try again later.")


class NoSignOfLife(NoobleError):
    """Neither a message nor a pong came after a ping."""

    http_status = 408
    default_message = _("The connection was silent for too long.")


class SlowReader(NoobleError):
    """The client takes less than is sent to it."""

    http_status = 408
    default_message = _("The connection is too slow for what is sent over it.")
