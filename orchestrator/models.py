"""What the front door remembers."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from core.models import TenantModel


class IdempotencyKey(TenantModel):
    """A caller's `Idempotency-Key` and the answer that it got, kept for a day.

    `scope` is a digest of whom the key belongs to; `answer` is JSON as it was sent, to the byte. A row
    is written in the transaction of what it answers: committed, it always has its answer.
    """

    scope = models.CharField(max_length=64)
    key = models.CharField(max_length=255)
    body = models.CharField(max_length=64)  # a digest of the parsed body
    answer = models.TextField(blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta(TenantModel.Meta):
        default_permissions = ()
        constraints = [models.UniqueConstraint(name="idempotency_key", fields=["scope", "key"])]
        indexes = [models.Index(fields=["created_at"])]

    def __str__(self) -> str:
        return self.key
