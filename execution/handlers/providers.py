"""Providers that tenants register: written, checked, never shown."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, connection, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from agents.config import BUILT_IN_PROVIDERS
from agents.models import Agent
from core import aio
from core.actions.registry import handles
from core.audit import record
from core.errors import ValidationFailed
from core.models import ProviderCredential, Tenant
from core.tenancy import current_tenant_id
from execution.actions import (
    ProviderCheckAction,
    ProviderCreateAction,
    ProviderDeleteAction,
    ProviderResource,
    ProviderUpdateAction,
)
from execution.credentials import provider_of
from execution.errors import ProviderExists, ProviderInUse, ProviderNotFound, TierForbids, TooManyProviders
from execution.providers.base import ProviderError
from execution.providers.registry import VENDOR_BASE_URLS
from execution.selectors import provider_get, provider_resource

MOST = 100  # providers of one tenant: its runs load them all
NAMED = 20  # agents that a refusal names


@handles(ProviderCreateAction)
def create(action: ProviderCreateAction) -> ProviderResource:
    _check_tier()
    if action.name in BUILT_IN_PROVIDERS and action.name not in VENDOR_BASE_URLS:
        raise ValidationFailed(details={"name": _("This provider is the platform's own.")})
    if ProviderCredential.objects.count() >= MOST:
        raise TooManyProviders(details={"limit": MOST})
    row = ProviderCredential(
        tenant_id=current_tenant_id(), name=action.name, kind=action.kind, base_url=action.base_url or ""
    )
    row.set_key(action.api_key.get_secret_value() if action.api_key else None)
    _check(row)
    try:
        with transaction.atomic():
            row.save()
    except IntegrityError as error:
        raise ProviderExists(details={"name": action.name}) from error
    _on_record(action.verb, row, before={}, after=_state(row))
    return provider_resource(row)


@handles(ProviderUpdateAction)
def update(action: ProviderUpdateAction) -> ProviderResource:
    """A kept key never goes to a new address: whoever changes the address must know the key."""
    _check_tier()
    row = _locked(action.name)
    before = _state(row)
    given = action.model_fields_set
    if "base_url" in given:
        row.base_url = action.base_url or ""
    if "api_key" in given:
        row.set_key(action.api_key.get_secret_value() if action.api_key else None)
    elif row.encrypted_key and row.base_url != before["base_url"]:
        raise ValidationFailed(details={"api_key": _("A new address needs the key once more.")})
    _check(row)
    after = _state(row)
    if after != before:
        # What was found out with the old address and key says nothing about the new ones.
        row.checked_at, row.check_error, row.models_listed = None, "", None
        row.save()
        _on_record(action.verb, row, before=before, after=after)
    return provider_resource(row)


@handles(ProviderDeleteAction)
def delete(action: ProviderDeleteAction) -> None:
    """Without it an agent that asks it could not answer; a built-in name falls back to the operator's."""
    row = _locked(action.name)
    if action.name not in BUILT_IN_PROVIDERS:
        users = Agent.objects.filter(
            Q(version__config__provider=row.name)
            | Q(version__config__fallback__provider=row.name)
            | Q(published__config__provider=row.name)
            | Q(published__config__fallback__provider=row.name),
            deleted_at=None,
        ).order_by("slug")
        if users:
            raise ProviderInUse(details={"agents": [agent.slug for agent in users[:NAMED]]})
    _on_record(action.verb, row, before=_state(row), after={})
    row.delete()


@handles(ProviderCheckAction, atomic=False)
def check(action: ProviderCheckAction) -> ProviderResource:
    """Meanwhile no transaction is open; a row that was changed meanwhile is not told what came of it."""
    row = provider_get(action.name)
    if not connection.in_atomic_block:
        connection.close()
    error, models = aio.run(_asked(row))
    found = {"checked_at": timezone.now(), "check_error": error, "models_listed": models}
    ProviderCredential.objects.filter(pk=row.pk, updated_at=row.updated_at).update(**found)
    return provider_resource(provider_get(action.name))


async def _asked(row: ProviderCredential) -> tuple[str, int | None]:
    """The name of the error, if there was one, and how many models are listed."""
    try:
        models = await provider_of(row).models()
    except ProviderError as error:
        return type(error).__name__, None
    return "", None if models is None else len(models)


def _check_tier() -> None:
    tier = Tenant.objects.select_related("tier").get(pk=current_tenant_id()).tier
    if not tier.own_providers:
        raise TierForbids(_("The tier %(tier)s does not allow providers of one's own.") % {"tier": tier.name})


def _check(row: ProviderCredential) -> None:
    """Raises ValidationFailed when nobody could be reached so."""
    if row.name not in VENDOR_BASE_URLS and not row.base_url:
        raise ValidationFailed(details={"base_url": _("A provider of this name needs an address.")})
    if not row.base_url and not row.encrypted_key:
        raise ValidationFailed(details={"api_key": _("The vendor's own address needs a key.")})


def _locked(name: str) -> ProviderCredential:
    rows = ProviderCredential.objects.select_for_update()
    row: ProviderCredential | None = rows.filter(name=name).first()
    if row is None:
        raise ProviderNotFound()
    return row


def _state(row: ProviderCredential) -> dict[str, Any]:
    """What entries of the record compare; the key, which they mask, as it is encrypted."""
    return {"name": row.name, "kind": row.kind, "base_url": row.base_url, "api_key": row.encrypted_key}


def _on_record(verb: str, row: ProviderCredential, *, before: dict[str, Any], after: dict[str, Any]) -> None:
    record(verb, "provider", row.name, tenant_id=row.tenant_id, before=before, after=after)
