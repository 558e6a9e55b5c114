"""The verbs of the secrets that a tenant signs its end users' tokens with."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from core.actions.base import Action, Result


class EndUserSecretCreate(BaseModel):
    """The body of a create."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True)]


class EndUserSecretResource(Result):
    """A secret as the API shows it. `secret` is there only in the answer that made it.

    `secret_id` is the `kid` that tokens may name it by.
    """

    secret_id: str
    name: str
    created_at: datetime.datetime
    revoked_at: datetime.datetime | None
    secret: str | None = None


class EndUserSecretCreateAction(EndUserSecretCreate, Action[EndUserSecretResource]):
    """Make a secret beside those that there are; the answer has it, this once."""

    verb = "end_user_secret.create"


class EndUserSecretRevokeAction(Action[None]):
    """Revoke a secret for good: no token that it has signed is taken any more."""

    verb = "end_user_secret.revoke"

    secret_id: Annotated[str, StringConstraints(max_length=12)]
