"""How a tenant reaches models at its own cost."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from core.models.base import TenantModel
from core.models.tenant import slug_validator
from core.secrets import encrypt

SHOWN = 4  # characters of a key's end
LEAST = 12  # a shorter key shows nothing of itself


class ProviderCredential(TenantModel):
    """A provider that a tenant registered: an address, a key, or both.

    The name is what agents' configurations call it. Under the name of a built-in provider it takes
    the operator's place, at the vendor's own address when `base_url` is empty. The key can be
    written and used, never read again: only its end is shown.
    """

    class Kind(models.TextChoices):
        """The protocol that the provider speaks."""

        OPENAI_WIRE = "openai-wire", "OpenAI"

    name = models.CharField(_("name"), max_length=40, validators=[slug_validator])
    kind = models.CharField(_("protocol"), max_length=20, choices=Kind.choices, default=Kind.OPENAI_WIRE)
    base_url = models.CharField(_("base URL"), max_length=500, blank=True)
    encrypted_key = models.TextField(blank=True, editable=False)
    key_end = models.CharField(max_length=SHOWN, blank=True, editable=False)
    # The last check: when, the name of the provider error it met, and how many models were listed.
    checked_at = models.DateTimeField(_("checked at"), null=True, editable=False)
    check_error = models.CharField(_("error"), max_length=64, blank=True, editable=False)
    models_listed = models.PositiveIntegerField(_("models listed"), null=True, editable=False)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    class Meta(TenantModel.Meta):
        verbose_name = _("provider")
        verbose_name_plural = _("providers")
        constraints = [models.UniqueConstraint(name="provider_credential_name", fields=["tenant", "name"])]

    def __str__(self) -> str:
        return self.name

    @property
    def key_shown(self) -> str:
        """What may be seen of the key; empty when there is none."""
        return f"…{self.key_end}" if self.encrypted_key else ""

    def set_key(self, text: str | None) -> None:
        """Keep this key instead of the present one; None or nothing keeps none."""
        self.encrypted_key = encrypt(text) if text else ""
        self.key_end = text[-SHOWN:] if text and len(text) >= LEAST else ""
