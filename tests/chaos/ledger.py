"""What must hold between the ledger and the provider's own books, whatever was killed meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

# The columns of a Row, of those that a condition behind it chooses.
ROWS = "SELECT {}, accuracy, prompt_tokens, completion_tokens, cost FROM core_usagerecord"
# Whole answers whose call was never settled with what the provider said; but for those of these models.
UNSETTLED = """
SELECT task.id::text FROM core_task AS task
LEFT JOIN core_usagerecord AS call ON call.task_id = task.id AND call.accuracy = 'exact'
WHERE task.action = 'agent.execute' AND task.status = 'completed' AND NOT EXISTS (
    SELECT FROM core_usagerecord AS other WHERE other.task_id = task.id AND other.model = ANY(%s))
GROUP BY task.id HAVING count(call.id) <> 1
"""


class Row(NamedTuple):
    """What the ledger says of one call."""

    accuracy: str
    prompt: int
    completion: int
    cost: Decimal | None

    @property
    def is_honest(self) -> bool:
        """Whether it counts something, or says that nobody knows: never a silent zero."""
        if self.accuracy == "unknown":
            return (self.prompt, self.completion, self.cost) == (0, 0, None)
        return self.prompt > 0 and self.cost != 0


def wrong(
    calls: Sequence[dict[str, Any]], rows: Sequence[Row], *, cut: bool, whole: bool = False
) -> list[str]:
    """What is not as it should be between these entries of the provider's books and their rows, in words.

    `cut`: some were killed or cancelled. Their rows are `estimated` or `unknown`; and since a row is
    written before its call, some may be of calls that were never made. `whole`: one answer came to its end.
    """
    found = []
    unmade = sum(row.accuracy != "exact" and not row.completion for row in rows) if cut else 0
    if not len(calls) <= len(rows) <= len(calls) + unmade:
        found.append(f"{len(calls)} calls, {len(rows)} rows: {rows[:9]}")
    reported = Counter(
        (entry["usage"]["prompt_tokens"], entry["usage"]["completion_tokens"])
        for entry in calls
        if entry["usage_sent"]
    )
    exact = Counter((row.prompt, row.completion) for row in rows if row.accuracy == "exact")
    if exact - reported:
        found.append(f"exact rows {exact}, the provider said {reported}")
    if whole and exact.total() != 1:
        found.append(f"a whole answer has {exact.total()} exact rows: {rows[:9]}")
    if not cut and any(row.accuracy == "unknown" for row in rows):
        found.append(f"nobody knows what a call took that nobody cut: {rows[:9]}")
    found += [f"a silent zero: {row}" for row in rows if not row.is_honest]
    return found
