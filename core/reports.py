"""What was used and what it cost: sums of the ledger, by day, agent, model and end user."""

from __future__ import annotations

import base64
import csv
import datetime
import io
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import TruncDate

from core.budgets import dollars_text
from core.models import UsageRecord

# What a report can be divided by, and the columns of each.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "day": ("day",),
    "agent": ("agent_id",),
    "model": ("provider", "model"),
    "end_user": ("end_user",),
}
_KNOWN = ~Q(accuracy=UsageRecord.Accuracy.UNKNOWN)
FIGURES: dict[str, Any] = {
    "calls": Count("pk"),
    "exact": Count("pk", filter=Q(accuracy=UsageRecord.Accuracy.EXACT)),
    "estimated": Count("pk", filter=Q(accuracy=UsageRecord.Accuracy.ESTIMATED)),
    "unknown": Count("pk", filter=Q(accuracy=UsageRecord.Accuracy.UNKNOWN)),
    "unpriced": Count("pk", filter=_KNOWN & Q(cost=None)),
    "prompt_tokens": Sum("prompt_tokens"),
    "completion_tokens": Sum("completion_tokens"),
    "cached_tokens": Sum("cached_tokens"),
    "cost": Sum("cost"),
}
_READ: dict[str, Callable[[str], Any]] = {"day": datetime.date.fromisoformat, "agent_id": uuid.UUID}
# A table's program takes a cell that begins so for a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True, slots=True)
class Report:
    """A report's lines, in order, and the cursor of those that follow, if any do."""

    lines: list[dict[str, Any]]
    next: str | None


def columns(by: Iterable[str]) -> list[str]:
    """The columns of a report that is divided so, in the order in which it is sorted."""
    return [column for dimension in by for column in DIMENSIONS[dimension]]


def usage_report(
    rows: QuerySet[UsageRecord],
    by: Sequence[str],
    first: datetime.date,
    last: datetime.date,
    *,
    limit: int,
    after: str | None = None,
) -> Report:
    """The sums of these rows, from the first day (UTC) to the last, `limit` lines behind a cursor.

    Raises ValueError for a cursor that is none of this report's.
    """
    names = columns(by)
    found = within(rows, first, last).annotate(day=TruncDate("created_at", tzinfo=datetime.UTC))
    if after is not None:
        found = found.filter(_behind(names, after))
    lines = list(found.values(*names).annotate(**FIGURES).order_by(*names)[: limit + 1])
    following = _cursor(names, lines[limit - 1]) if len(lines) > limit else None
    return Report([_shown(line) for line in lines[:limit]], following)


def within(rows: QuerySet[UsageRecord], first: datetime.date, last: datetime.date) -> QuerySet[UsageRecord]:
    """Those of the rows that were made on these days, of UTC."""
    begin = datetime.datetime.combine(first, datetime.time(), datetime.UTC)
    end = datetime.datetime.combine(last, datetime.time(), datetime.UTC) + datetime.timedelta(days=1)
    return rows.filter(created_at__gte=begin, created_at__lt=end)


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    cost = line["cost"]
    return {**line, "cost": dollars_text(cost) if cost is not None else None}


def _cursor(names: Sequence[str], line: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([str(line[name]) for name in names])).decode().rstrip("=")


def _behind(names: Sequence[str], cursor: str) -> Q:
    """Rows whose values of these columns come after the cursor's."""
    padded = cursor.encode() + b"=" * (-len(cursor) % 4)
    values = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    if not isinstance(values, list) or len(values) != len(names):
        raise ValueError("another report's cursor")
    behind, same = Q(), Q()
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or "\0" in value:
            raise ValueError("a cursor of something else")
        known = _READ.get(name, str)(value)
        behind |= same & Q(**{f"{name}__gt": known})
        same &= Q(**{name: known})
    return behind


def as_csv(names: Sequence[str], lines: Iterable[dict[str, Any]]) -> str:
    """The lines as a table with a head. No cell begins like a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    for line in lines:
        writer.writerow(_cell(line[name]) for name in names)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULAS):
        return f"'{value}"
    return "" if value is None else value
