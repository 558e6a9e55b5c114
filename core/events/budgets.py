"""What tenants hear of their budgets."""

from __future__ import annotations

import datetime
import uuid
from typing import Literal

from core.events.base import Event, EventData, Service


class BudgetState(EventData):
    """A budget's period at the moment of the notice. Costs are US dollars.

    `threshold` is 80, or 100: then all is used, or what is left was too little for a call. `end_user` is
    whose use it is, of a budget of end users.
    """

    budget_id: uuid.UUID
    subject: str
    agent_id: uuid.UUID | None
    end_user: str
    period: str
    threshold: int
    begins_at: datetime.datetime
    resets_at: datetime.datetime | None
    used_tokens: int
    used_cost: str
    limit_tokens: int | None
    limit_cost: str | None


class BudgetThreshold(Event):
    """A budget has passed 80 % or 100 % of a limit; told once in a period."""

    event: Literal["budget_threshold"] = "budget_threshold"
    service: Service = "agent-orchestrator"
    data: BudgetState
