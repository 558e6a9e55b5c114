"""Provider failures as the platform's errors."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from core.errors import Conflict, NoobleError, NotFound, PermissionRefused
from execution.providers.base import ProviderError

# The texts of `execution.providers.base`, which knows no framework, where translators find them.
_TEXTS = {
    "ProviderError": _("The model provider failed."),
    "ProviderUnavailable": _("The model provider cannot be reached right now."),
    "ProviderTimeout": _("The model provider did not answer in time."),
    "DeadlineExceeded": _("The run took longer than it may."),
    "ProviderRateLimited": _("The model provider is over its rate limit."),
    "ProviderAuthenticationFailed": _("The model provider refused our credentials."),
    "ProviderRejected": _("The model provider rejected the request."),
    "ProviderProtocolError": _("The model provider sent an answer that could not be read."),
    "ProviderAddressRefused": _("The model provider's address is not a public one."),
    "ProviderNotConfigured": _("The model provider is not configured."),
}


class RunError(NoobleError):
    """A run that gave no answer; its `type` is the provider error's name."""

    http_status = 502

    def __init__(self, kind: str) -> None:
        super().__init__(_TEXTS[kind])
        self._kind = kind

    @property
    def type(self) -> str:
        return self._kind


def described(error: ProviderError) -> RunError:
    """What clients and the task's row are told; the provider's own words stay in the log."""
    return RunError(type(error).__name__)


class ProviderNotFound(NotFound):
    default_message = _("Provider not found.")


class ProviderExists(Conflict):
    default_message = _("The tenant has a provider of this name.")


class ProviderInUse(Conflict):
    """Agents would have nobody to ask; `details` names them."""

    default_message = _("Agents use this provider.")


class TooManyProviders(Conflict):
    default_message = _("The tenant has as many providers as it may have.")


class TierForbids(PermissionRefused):
    """The tenant's tier does not include this."""


class BudgetNotFound(NotFound):
    default_message = _("Budget not found.")


class BudgetExists(Conflict):
    default_message = _("There is a budget for this subject and period.")


class BudgetLocked(PermissionRefused):
    """It is the operator's."""

    default_message = _("Only the platform's own people may change this budget.")


class TooManyBudgets(Conflict):
    default_message = _("The tenant has as many budgets as it may have.")
