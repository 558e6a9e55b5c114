"""What can go wrong at the front door."""

from django.utils.translation import gettext_lazy as _

from core.errors import (
    AuthenticationRequired,
    Conflict,
    NoobleError,
    NotFound,
    PermissionRefused,
    RateLimited,
    ValidationFailed,
)


class IdempotencyKeyReused(Conflict):
    """For 24 hours a key stands for one body."""

    default_message = _("This Idempotency-Key was used for another request.")


class TooManyConnections(RateLimited):
    default_message = _("Too many connections. Please try again later.")


class QueueFull(RateLimited):
    """As many runs of the tenant wait as may."""

    default_message = _("Too many requests are waiting to be answered. Please try again later.")


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


class EndUserTokenRefused(AuthenticationRequired):
    """`details` name what is wrong with it: `signature`, `exp`, `alg`, …"""

    default_message = _("The end-user token is not valid.")

    def __init__(self, reason: str) -> None:
        super().__init__(details={"end_user_token": reason})


class OriginRefused(PermissionRefused):
    """Browsers may chat with the agent from other pages only."""

    default_message = _("This agent cannot be used from this page.")


class ProofRequired(PermissionRefused):
    """The agent is not open to all: `details` say what it takes."""

    default_message = _("This agent has to know who is asking.")


class ContextTooLong(ValidationFailed):
    """More than the agent may read in one run; `details` tell how many tokens, estimated."""

    default_message = _("The messages are longer than the agent may read.")


class BatchNotFound(NotFound):
    default_message = _("Batch not found.")


class TooManyBatches(Conflict):
    """The tenant has to wait for one to end, or cancel one."""

    default_message = _("The tenant has as many open batches as it may have.")


class ServiceTokenRequired(AuthenticationRequired):
    default_message = _("The platform's service token is required.")


class AnswerRestarted(NoobleError):
    """The worker of a run was lost, and its next attempt says something else than what was told."""

    http_status = 502
    default_message = _("The answer was begun anew and went on differently.")


class ParameterRefused(NoobleError):
    """A parameter of an OpenAI-compatible request that is wrong, or asks for what there is not."""

    http_status = 422
    default_message = _("The request is not valid.")

    def __init__(self, param: str, code: str, reason: str) -> None:
        message = _("The parameter %(param)s is not accepted: %(reason)s")
        super().__init__(message % {"param": param, "reason": reason}, details={param: reason})
        self.param = param
        self.code = code
