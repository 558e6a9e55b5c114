"""What can go wrong at the front door."""

from django.utils.translation import gettext_lazy as _

from core.errors import Conflict, NoobleError, NotFound, RateLimited


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


class WebhookNotFound(NotFound):
    default_message = _("Webhook not found.")


class DeliveryNotFound(NotFound):
    default_message = _("Delivery not found.")


class TooManyWebhooks(Conflict):
    default_message = _("The tenant has as many webhooks as it may have.")


class WebhookIsDisabled(Conflict):
    """Nothing is sent to it; it has to be enabled first."""

    default_message = _("The webhook is disabled.")


class TaskIsOpen(Conflict):
    """A task's end is told once its row is settled, and not before."""

    default_message = _("The task has not ended.")


class EventRefused(Conflict):
    """The session's log has heard a later attempt, or the end, of the task."""

    default_message = _("The event comes too late.")


class ServiceRefused(NoobleError):
    """The token is not the platform's, or the name is no service's."""

    http_status = 403
    default_message = _("The service is not known here.")
