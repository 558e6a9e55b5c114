"""The verbs of API keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from core.actions.base import Action, Result
from core.models.access import SCOPES


class CreatedKey(Result):
    """`key` is the whole key: nobody can read it again."""

    row_id: int
    key: str


class ApiKeyCreateAction(Action[CreatedKey]):
    """Make a key for the current tenant."""

    verb = "api_key.create"

    name: Annotated[str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True)]
    scopes: Annotated[tuple[Literal[SCOPES], ...], Field(min_length=1)]  # type: ignore[valid-type]


class ApiKeyRevokeAction(Action[None]):
    """Revoke a key for good."""

    verb = "api_key.revoke"

    row_id: int
