"""What agents are called, for pages of the ground floor."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from agents.models import Agent
from core.admin import usage_report


def names_of(agent_ids: Iterable[uuid.UUID]) -> Mapping[uuid.UUID, str]:
    """The names of those that the person may see, also of deleted ones."""
    return dict(Agent.unscoped.filter(pk__in=list(agent_ids)).values_list("pk", "name"))


usage_report.namers.append(names_of)
