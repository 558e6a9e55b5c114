"""The verbs of a tenant's people."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from core.actions.base import Action, Result
from core.models.membership import Role


class KeptMembership(Result):
    row_id: int


class MembershipCreateAction(Action[KeptMembership]):
    """Let a person of the console look at the current tenant, or work for it."""

    verb = "membership.create"

    username: Annotated[str, StringConstraints(min_length=1, max_length=150, strip_whitespace=True)]
    role: Role


class MembershipUpdateAction(Action[KeptMembership]):
    """Give a person of the current tenant another role."""

    verb = "membership.update"

    row_id: int
    role: Role


class MembershipDeleteAction(Action[None]):
    """A person belongs to the current tenant no more."""

    verb = "membership.delete"

    row_id: int
