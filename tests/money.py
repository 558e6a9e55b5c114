"""What must hold of every budget at every moment: its uses say what the usage records say."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

# Of each use: what it says, and the sums of the records that it counts.
SUMS = """
SELECT used.id, used.held_tokens, used.spent_tokens, used.held_cost, used.spent_cost,
    COALESCE(sum(call.reserved_tokens) FILTER (WHERE call.held), 0),
    COALESCE(sum(call.prompt_tokens + call.completion_tokens + call.reserved_tokens)
        FILTER (WHERE NOT call.held), 0),
    COALESCE(sum(call.reserved_cost) FILTER (WHERE call.held), 0),
    COALESCE(sum(COALESCE(call.cost, 0) + call.reserved_cost) FILTER (WHERE NOT call.held), 0)
FROM core_budgetuse AS used LEFT JOIN core_usagerecord AS call ON used.id = ANY (call.charged)
WHERE used.budget_id = ANY (%s::uuid[])
GROUP BY used.id
"""


def wrong_sums(rows: list[tuple[Any, ...]]) -> list[str]:
    """Of the rows of SUMS, those that do not add up, in words."""
    found = []
    for use, *numbers in rows:
        said, summed = (
            [Decimal(number) for number in numbers[:4]],
            [Decimal(number) for number in numbers[4:]],
        )
        if said != summed:
            found.append(f"use {use} says {said}, its calls {summed} (held, spent; tokens, cost)")
    return found
