"""Named reads of agents that answer: as those who only want to run them see them."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet

from agents.errors import AgentNotFound, VersionNotFound
from agents.models import Agent, AgentVersion
from core.ids import is_slug, parse_uuid


@dataclass(frozen=True, slots=True)
class PublishedAgent:
    """An agent that has a published version, and is not switched off."""

    agent_id: uuid.UUID
    slug: str
    created_at: datetime.datetime


def published_agents() -> list[PublishedAgent]:
    """All of the current tenant's, oldest first."""
    return [PublishedAgent(*row) for row in _published().order_by("pk").values_list(*_COLUMNS)]


def published_named(text: str) -> PublishedAgent:
    """The current tenant's agent that has this id or this slug. Raises AgentNotFound."""
    agent_id = parse_uuid(text)
    if agent_id is None and not is_slug(text):
        raise AgentNotFound()
    named: dict[str, Any] = {"pk": agent_id} if agent_id is not None else {"slug": text}
    row = _published().filter(**named).values_list(*_COLUMNS).first()
    if row is None:
        raise AgentNotFound()
    return PublishedAgent(*row)


def agent_id_named(text: str) -> uuid.UUID:
    """The id that the text is, or that the current tenant's agent of this slug has. Raises AgentNotFound.

    Whether that agent answers is another question.
    """
    agent_id = parse_uuid(text)
    if agent_id is None and is_slug(text):
        agent_id = Agent.objects.filter(slug=text, deleted_at=None).values_list("pk", flat=True).first()
    if agent_id is None:
        raise AgentNotFound()
    return agent_id


def version_id_of(agent_id: uuid.UUID, number: int) -> int:
    """The row of a version of the current tenant's agent. Raises VersionNotFound."""
    rows = AgentVersion.objects.filter(agent_id=agent_id, number=number).values_list("pk", flat=True)
    found: int | None = rows.first()
    if found is None:
        raise VersionNotFound()
    return found


_COLUMNS = ("pk", "slug", "created_at")


def _published() -> QuerySet[Agent]:
    rows: QuerySet[Agent] = Agent.objects.filter(deleted_at=None, published__isnull=False, suspended_at=None)
    return rows
