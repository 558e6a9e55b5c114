"""Named reads of tenants' providers."""

from __future__ import annotations

from core.actions.base import ActionError
from core.models import ProviderCredential
from execution.actions import ProviderCheck, ProviderResource
from execution.errors import ProviderNotFound, RunError


def provider_get(name: str) -> ProviderCredential:
    """A provider that the current tenant has registered. Raises ProviderNotFound."""
    row: ProviderCredential | None = ProviderCredential.objects.filter(name=name).first()
    if row is None:
        raise ProviderNotFound()
    return row


def provider_list() -> list[ProviderCredential]:
    """All of the current tenant's, by name."""
    return list(ProviderCredential.objects.order_by("name"))


def provider_resource(row: ProviderCredential) -> ProviderResource:
    """The provider as the API shows it."""
    return ProviderResource(
        name=row.name,
        kind=row.kind,
        base_url=row.base_url or None,
        key=row.key_shown or None,
        check=_check(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _check(row: ProviderCredential) -> ProviderCheck | None:
    if row.checked_at is None:
        return None
    error = ActionError(**RunError(row.check_error).as_dict()) if row.check_error else None
    return ProviderCheck(ok=error is None, models=row.models_listed, error=error, checked_at=row.checked_at)
