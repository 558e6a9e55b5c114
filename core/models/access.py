"""What a tenant's own software shows: keys of its own, and secrets to sign its end users' tokens with."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils.translation import gettext_lazy as _

from core.models.base import TenantModel
from core.secrets import encrypt
from core.tenancy import across_tenants

AREAS = ("agents", "chat", "knowledge", "tools", "workflows", "webhooks", "usage", "sessions")
SCOPES = tuple(f"{area}:{right}" for area in AREAS for right in ("read", "write"))

_key_pattern = re.compile(r"^nbk_([a-z0-9]{12})_([A-Za-z0-9_-]{43})\Z")


def _digest(secret: str) -> str:
    # The secret has 256 random bits: a plain hash is enough, and fast on every request.
    return hashlib.sha256(secret.encode()).hexdigest()


class ApiKey(TenantModel):
    """A tenant's key: stored hashed, shown once, revocable, limited to scopes."""

    prefix = models.CharField(_("prefix"), max_length=12, unique=True, editable=False)
    digest = models.CharField(max_length=64, editable=False)
    name = models.CharField(_("name"), max_length=80)
    scopes = ArrayField(
        models.CharField(max_length=32, choices=[(scope, scope) for scope in SCOPES]),
        verbose_name=_("scopes"),
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    revoked_at = models.DateTimeField(_("revoked at"), null=True, blank=True, editable=False)

    class Meta(TenantModel.Meta):
        verbose_name = _("API key")
        verbose_name_plural = _("API keys")

    def __str__(self) -> str:
        return f"{self.name} (nbk_{self.prefix}_…)"

    def mint(self) -> str:
        """Give this unsaved key its secret and return the whole key, which nobody can read again."""
        self.prefix = secrets.token_hex(6)
        secret = secrets.token_urlsafe(32)
        self.digest = _digest(secret)
        return f"nbk_{self.prefix}_{secret}"

    @classmethod
    def verify(cls, text: str) -> ApiKey | None:
        """The living key that `text` spells, of whatever tenant, or None."""
        match = _key_pattern.match(text)
        if match is None:
            return None
        with across_tenants():
            key: ApiKey | None = cls.unscoped.filter(prefix=match.group(1), revoked_at=None).first()
        if key is None or not hmac.compare_digest(key.digest, _digest(match.group(2))):
            return None
        return key


class EndUserSecret(TenantModel):
    """A secret that a tenant's back end signs end users' tokens with: encrypted, shown once, revocable.

    Several may live at once: a new one is taken into use before the old one is revoked. `prefix` is its
    public name, the `kid` of tokens.
    """

    prefix = models.CharField(_("prefix"), max_length=12, unique=True, editable=False)
    name = models.CharField(_("name"), max_length=80)
    encrypted = models.TextField(blank=True, editable=False)  # nothing is left of a revoked one
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    revoked_at = models.DateTimeField(_("revoked at"), null=True, blank=True, editable=False)

    class Meta(TenantModel.Meta):
        verbose_name = _("end-user secret")
        verbose_name_plural = _("end-user secrets")
        indexes = [
            models.Index(
                name="end_user_secret_living", fields=["tenant"], condition=models.Q(revoked_at=None)
            )
        ]

    def __str__(self) -> str:
        return f"{self.name} (nbs_{self.prefix}_…)"

    def mint(self) -> str:
        """Give this unsaved secret its text and return it: nobody can read it again."""
        self.prefix = secrets.token_hex(6)
        text = f"nbs_{self.prefix}_{secrets.token_urlsafe(32)}"
        self.encrypted = encrypt(text)
        return text
